"""The tensors of model.safetensors, each read and checked when it is asked for.

A model that is larger than half the memory can so be laid out for its kernels matrix by matrix: its file is never in
memory as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors import safe_open
from torch import Tensor

from questlm.artifact.format import ArtifactConfig, TensorSpec, WeightFormat, expected_tensors, matrix_tensor_specs
from questlm.artifact.matrices import check_codes
from questlm.artifact.shapes import matrix_shapes
from questlm.artifact.single_file import DTYPES
from questlm.errors import ArtifactError, quoted
from questlm.json_files import read_safetensors_header

__all__ = ["StoredTensors", "check_tensor", "meta_tensors"]


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of safetensors files by name, as a config implies them; each look-up reads anew, into its own memory.

    What was looked up has passed `check_tensor`. To be closed.

    Raises:
        ArtifactError: names, shapes or dtypes are not those of the config, before any tensor is read; a look-up raises
            it for values that an artifact may not hold.
    """

    def __init__(self, paths: Sequence[Path], config: ArtifactConfig) -> None:
        self._config, self._expected = config, expected_tensors(config)
        self._places: dict[str, tuple[BufferedReader, int]] = {}
        with ExitStack() as stack:
            for path in paths:
                header, start = read_safetensors_header(path, ArtifactError)
                names = _checked_names(path, self._expected)
                if repeated := self._places.keys() & names:
                    raise ArtifactError(f"{path} has an unexpected tensor {quoted(min(repeated))}, by its config")
                file = stack.enter_context(path.open("rb"))
                self._places |= {name: (file, start + header[name]["data_offsets"][0]) for name in names}
            if missing := self._expected.keys() - self._places.keys():
                raise ArtifactError(f"{paths[0]} lacks tensor {quoted(min(missing))}, by its config")
            self._files = stack.pop_all()

    def __getitem__(self, name: str) -> Tensor:
        spec, (file, place) = self._expected[name], self._places[name]
        data = torch.empty(spec.bytes, dtype=torch.uint8)
        file.seek(place)
        if file.readinto(data.numpy().data) != spec.bytes:
            raise ArtifactError(f"{file.name} ends within {name}; it was changed while it was read")
        tensor = data.view(DTYPES[spec.dtype]).view(spec.shape)
        check_tensor(name, tensor, self._config)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._expected)

    def __len__(self) -> int:
        return len(self._expected)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()


def check_tensor(name: str, tensor: Tensor, config: ArtifactConfig) -> None:
    """Refuse a tensor of an artifact with values that it may not hold.

    Raises:
        ArtifactError: a float that is not finite, a negative step or scale, a code that is not on its grid.
    """
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise ArtifactError(f"{name} holds a value that is not finite; the artifact is damaged")
    if name.endswith(("step", ".scale")) and (tensor < 0).any():
        raise ArtifactError(f"{name} holds a negative size; the artifact is damaged")
    if name.endswith(".step") and tensor.dtype is torch.uint8 and (tensor >= 0x7F).any():
        raise ArtifactError(f"{name} holds a step that is negative or no number; the artifact is damaged")
    if tensor.dtype is torch.int8 and (tensor == -128).any():
        raise ArtifactError(f"{name} holds the code -128, but the smallest is -127; the artifact is damaged")
    if tensor.dtype is torch.uint8:
        matrix, _, kind = name.rpartition(".")
        weight_format = config.weight_format(matrix)
        _, columns = weight_format.wide_shape(matrix_shapes(config.model)[matrix])
        try:
            check_codes({kind: tensor}, weight_format, columns)
        except ArtifactError as problem:
            raise ArtifactError(f"{matrix}.{problem}; the artifact is damaged") from None


def meta_tensors(shape: tuple[int, int], weight_format: WeightFormat) -> dict[str, Tensor]:
    """The tensors of a matrix (out, in) by kind, without values: on the meta device."""
    specs = matrix_tensor_specs(shape, weight_format)
    return {kind: torch.empty(spec.shape, dtype=DTYPES[spec.dtype], device="meta") for kind, spec in specs.items()}


def _checked_names(path: Path, expected: Mapping[str, TensorSpec]) -> set[str]:
    """Names of the tensors in a file, whose shapes and dtypes are those that are expected."""
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        if unexpected := names - expected.keys():
            raise ArtifactError(f"{path} has an unexpected tensor {quoted(min(unexpected))}, by its config")
        for name in names:
            header, spec = file.get_slice(name), expected[name]
            dtype, shape = header.get_dtype(), tuple(header.get_shape())
            if (dtype, shape) != (spec.dtype, spec.shape):
                raise ArtifactError(
                    f"{path}: {name} is {dtype} {shape}, but by its config it must be {spec.dtype} {spec.shape}"
                )
    return names
