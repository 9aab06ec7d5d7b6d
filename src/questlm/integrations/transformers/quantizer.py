"""How transformers loads and saves a packed model.

transformers builds the model that config.json names and fills it from model.safetensors. Here it finds empty places
instead of linear layers and embedding. When it is done, the artifact is read and checked by our own reader, and each
matrix is laid out for the device. So a model loads by the same code as `questlm.load`, gives its logits in float32, and
takes its memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from questlm.artifact.format import ArtifactConfig
from questlm.artifact.read import Artifact, load_artifact, read_fetched
from questlm.artifact.shapes import matrix_shapes, norm_widths
from questlm.config.hugging_face import hugging_face_config, model_config_from_hugging_face
from questlm.errors import ArtifactError, ConfigError, QuestError, cleaned
from questlm.inference.build import packed_layers
from questlm.integrations.transformers.layers import PackedSlot
from questlm.manifest import MANIFEST_NAME
from questlm.models import module_to_hugging_face

__all__ = ["QuestlmConfig", "QuestlmQuantizer"]

_NAME = "questlm"
_DTYPES = (torch.float32, torch.bfloat16)
_OUR_TENSORS = r"^(embed|layers|norm|lm_head)\."


@register_quantization_config(_NAME)
class QuestlmConfig(QuantizationConfigMixin):
    """The section `quantization_config` of a packed model's config.json.

    Attributes:
        settings: its content (docs/concepts/artifact.md).
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = {name: value for name, value in settings.items() if name != "quant_method"}
        self.quant_method = _NAME  # type: ignore[assignment] # transformers' own methods are an enum

    def to_dict(self) -> dict[str, Any]:
        """The section as it is written."""
        return {"quant_method": _NAME, **self.settings}


@register_quantizer(_NAME)
class QuestlmQuantizer(HfQuantizer):
    """Loads and saves packed models for transformers."""

    requires_calibration = True  # a model that is not packed cannot be made so while it is loaded

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse a map to several devices: a packed model runs on one."""
        places = set(device_map.values()) if isinstance(device_map, dict) else {device_map}
        if len(places) > 1 or "disk" in places:
            raise ConfigError(f"a packed model runs on one device, not on {len(places)}; give device_map='cuda'")

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Refuse a dtype that packed layers do not compute in."""
        if dtype not in _DTYPES:
            raise ConfigError(
                f"dtype = {dtype}; a packed model computes in torch.float32, or in torch.bfloat16 with dtype='bfloat16'"
            )
        return dtype

    def is_serializable(self) -> bool:
        """Packed models are saved as they were loaded."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Packed weights have no gradient."""
        return False

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The stored tensors, read once more from the files that the model came from: in memory they lie otherwise.

        Raises:
            ArtifactError: these files are gone or have changed.
        """
        if self._states() != self._seen:
            raise ArtifactError(
                f"the files of this model in {self._files[0].parent} are gone or have changed since it was loaded, "
                "and packed weights in memory cannot be written; load the model again, or copy its folder"
            )
        return dict(self._read().tensors), {}

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        """Put empty places where matrices were."""
        if not checkpoint_files:
            raise ConfigError("a packed model is loaded from a folder or a repository; this call names neither")
        self._files = [Path(name) for name in checkpoint_files]
        self._config = _artifact_config(model.config)
        for _, parent, name in _places(model, self._config):
            setattr(parent, name, PackedSlot())
        # These are attributes of the classes. This model has no weights to tie, and reads its tensors by itself.
        model._tied_weights_keys = None
        model.all_tied_weights_keys = {}
        model._keys_to_ignore_on_load_unexpected = {_OUR_TENSORS}
        model._keys_to_ignore_on_load_missing = {r"norm\.weight$"}

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        """Fill the places, and set the norms."""
        artifact, self._seen = self._read(), self._states()
        base = getattr(model, model.base_model_prefix, model)
        for name in norm_widths(self._config.model):
            weight = base.get_parameter(_name_in_base(name) + ".weight")
            weight.data.copy_(artifact.tensors[f"{name}.weight"])
        device, dtype = base.norm.weight.device, base.norm.weight.dtype
        places = {name: getattr(parent, own) for name, parent, own in _places(model, self._config)}
        for name, layer in packed_layers(artifact, device, dtype, stay_packed=False):
            if name in places:
                places[name].fill(layer, device, dtype)
        model.requires_grad_(False)

    def _read(self) -> Artifact:
        manifest = self._files[0].parent / MANIFEST_NAME
        # A repository in the cache of huggingface_hub is made of links, which lead out of the folder.
        if manifest.is_file() and not manifest.is_symlink():
            return load_artifact(manifest.parent)
        return read_fetched(self._config, self._files)

    def _states(self) -> list[tuple[int, int] | None]:
        """Size and time of change of each file; None where there is none."""
        found = [path.stat() if path.is_file() else None for path in self._files]
        return [None if state is None else (state.st_size, state.st_mtime_ns) for state in found]


def _artifact_config(config: Any) -> ArtifactConfig:
    """What config.json says of the packed model.

    Raises:
        ArtifactError: it is not that of a packed model, or describes two models at once.
    """
    settings = config.to_dict()
    quantization = {name: value for name, value in settings["quantization_config"].items() if name != "quant_method"}
    try:
        own = ArtifactConfig.model_validate(
            {name: settings.get(name) for name in ("format", "version", "model")}
            | {"quantization_config": quantization, "training": {}}
        )
        described = model_config_from_hugging_face(settings | {"quantization_config": None})
    except (QuestError, ValueError) as problem:
        raise ArtifactError(f"config.json is not that of a packed model: {cleaned(problem, 300)}") from None
    if hugging_face_config(described) != hugging_face_config(own.model):
        raise ArtifactError("config.json describes another model to transformers than in its section `model`")
    return own


def _places(model: Any, config: ArtifactConfig) -> Iterator[tuple[str, nn.Module, str]]:
    """Our name of each matrix that this model has, with the module that holds its layer and the name there."""
    base = getattr(model, model.base_model_prefix, model)
    for name in dict.fromkeys((*matrix_shapes(config.model), "lm_head")):
        if name != "lm_head":
            parent, _, own = _name_in_base(name).rpartition(".")
            yield name, base.get_submodule(parent), own
        elif hasattr(model, "lm_head"):  # not a bare LlamaModel, nor a classifier
            yield name, model, name


def _name_in_base(name: str) -> str:
    """The name of one of our modules, but for the head, in `LlamaModel`."""
    return module_to_hugging_face(name).removeprefix("model.")
