"""Kernels as operators of torch, so that torch.compile and meta tensors see through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["register"]


def register(
    name: str, schema: str, device: str, kernel: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """The operator `name` ("namespace::operator"), computed by `kernel` on `device`; `fake` gives shapes and dtypes.

    By hand, because `torch.library.custom_op` adds 50 us to each call and these 10 us.
    """
    namespace, operator = name.split("::")
    if device == "cuda":
        kernel = _on_its_device(kernel)
    if not hasattr(getattr(torch.ops, namespace), operator):
        torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.register_fake(name, fake)
    torch.library.impl(name, device, kernel)
    return getattr(getattr(torch.ops, namespace), operator).default


def _on_its_device(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Triton starts kernels on the current device, which need not be that of the tensors."""

    def on_its_device(x: torch.Tensor, *rest: Any) -> Any:
        with torch.cuda.device_of(x):
            return kernel(x, *rest)

    return on_its_device
