"""AdamW, as in the published runs."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["AdamW"]


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` in one fused kernel a group."""

    recordable = True

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, lr=lr, betas=betas, fused=True)

    def make_state(self) -> None:
        """Give every parameter the state it has before the first step, all zeros."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
