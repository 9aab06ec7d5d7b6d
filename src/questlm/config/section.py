"""What all groups of settings share: they are frozen, refuse unknown keys and explain what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from questlm.config.messages import explain
from questlm.errors import ConfigError, quoted

__all__ = ["Section"]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys and explains what is wrong in one sentence."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as problem:
            raise ConfigError(explain(problem, type(self))) from None
        except TypeError:  # keywords that are not text
            raise ConfigError("unknown setting: the names of settings are text") from None

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with the values in `update` instead of its own, validated like any new settings.

        pydantic's own `model_copy` believes `update`, so a value that the settings forbid would be found much later:
        when the run's file is read again.

        Raises:
            ConfigError: a value or combination that cannot be used, or an unknown name.
        """
        if not update:
            return super().model_copy(deep=deep)
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**given | dict(update))

    @model_validator(mode="before")
    @classmethod
    def _no_truth_values_for_numbers(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            truth = any(isinstance(each, bool) for each in (value if isinstance(value, list) else [value]))
            if truth and name in cls.model_fields and cls.model_fields[name].annotation is not bool:
                raise ValueError(f"{name} = {quoted(value)} cannot be used: a number or a word is expected")
        return values

    @model_validator(mode="before")
    @classmethod
    def _only_text_that_files_can_hold(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, str) and any(each == "\0" or "\ud800" <= each <= "\udfff" for each in value):
                raise ValueError(f"{name} = {quoted(value)} cannot be used: no file can hold such a character")
        return values
