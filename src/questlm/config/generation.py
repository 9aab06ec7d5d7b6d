"""How a model's next tokens are chosen, and where its text ends."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from questlm.config.section import Section

__all__ = ["GenerationOptions"]


class GenerationOptions(Section):
    """How text is generated.

    The next token is chosen in this order: the repetition penalty changes the logits, the temperature divides them, and
    one token is drawn from those that top_k, top_p and min_p all leave.

    Raises:
        ConfigError: a value out of range, or an unknown name.
    """

    max_new_tokens: Annotated[int, Field(ge=1, le=2**31)] = Field(default=128, description="most tokens to generate")
    temperature: Annotated[float, Field(ge=0)] = Field(
        default=0.8, description="divides the logits; 0 takes the likeliest token each time"
    )
    top_k: Annotated[int, Field(ge=1)] | None = Field(
        default=50, description="choose among the k likeliest tokens; None: all"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="choose among the fewest tokens that hold this much of the probability; None: all"
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="choose among tokens of at least this share of the likeliest's probability; None: all"
    )
    repetition_penalty: Annotated[float, Field(ge=1e-3, le=1e3)] = Field(
        default=1.0,
        description="tokens of the prompt and the text so far get logits divided by this where positive, multiplied "
        "where negative (Keskar et al. 2019); 1 changes nothing",
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        default=None, description="the same seed gives the same text on the same device; None: another text each time"
    )
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="end the text before the first of these strings"
    )
    stop_at_end: bool = Field(default=True, description="end the text where the model ends the document")
