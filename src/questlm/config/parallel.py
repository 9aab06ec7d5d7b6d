"""How the processes that train one model exchange weights and gradients."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from questlm.config.section import Section

__all__ = ["ParallelConfig"]


class ParallelConfig(Section):
    """What processes send each other, and when. `train.parallel` says how they share the model."""

    gradients: Literal["float32", "bf16"] = Field(
        default="float32", description="dtype in which gradients are summed over processes; bf16 rounds them"
    )
    bucket_mb: Annotated[float, Field(gt=0, le=1e5)] = Field(
        default=100.0, description="megabytes of gradients in one exchange, where each process has the whole model"
    )
    gather: Literal["packed", "operand"] = Field(
        default="packed",
        description="fsdp: codes travel packed into their bits, for slow links, or one byte each as they are "
        "multiplied, which saves packing and unpacking",
    )
    keep_gathered: bool = Field(
        default=False,
        description="fsdp: weights gathered in a forward pass are kept until the step ends, and not gathered again in "
        "the backward pass and for each micro-batch",
    )
    prefetch: Annotated[int, Field(ge=0, le=16)] = Field(
        default=0, description="fsdp: blocks whose weights are asked for ahead of the one that computes; 0: torch's way"
    )
