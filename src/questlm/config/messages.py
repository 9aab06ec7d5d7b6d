"""Turn a pydantic report into one sentence: what was wrong, the value, what is allowed, the nearest name."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from questlm.errors import nearest_name, quoted

__all__ = ["explain"]


_ORDER = {"extra_forbidden": 0, "missing": 2}
_WORDS = {"tuple_type": "a list is expected", "too_short": "at least one is needed"}


def explain(problem: ValidationError, root: type[BaseModel]) -> str:
    """Describe one error of `problem`, met while building `root`: first unknown names, last missing ones."""
    error = min(problem.errors(), key=lambda error: _ORDER.get(error["type"], 1))
    path = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        allowed = sorted(_fields_at(root, path[:-1]))
        near = nearest_name(path[-1], allowed)
        return f"unknown setting {quoted(path[-1])}.{near} The settings there are: {', '.join(allowed)}."
    place = ".".join(_known_prefix(root, path))
    if error["type"] == "missing":
        return f"{'.'.join(path)} is missing"
    message = error["msg"].removeprefix("Value error, ")
    message = _WORDS.get(error["type"], message)
    if error["type"] == "value_error":  # a nested section has explained itself already: only say where it stands
        return f"{place}: {message}" if place else message
    return f"{place} = {quoted(error['input'])} cannot be used: {message[0].lower()}{message[1:]}"


def _fields_at(root: type[BaseModel], path: list[str]) -> list[str]:
    model: type[BaseModel] = root
    for part in path:
        model = _section_type(model, part) or model
    return list(model.model_fields)


def _known_prefix(root: type[BaseModel], path: list[str]) -> list[str]:
    """Drop the trailing union-branch labels that pydantic appends to a location."""
    known: list[str] = []
    model: type[BaseModel] | None = root
    for part in path:
        if model is None or part not in model.model_fields:
            break
        known.append(part)
        model = _section_type(model, part)
    return known


def _section_type(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    field = model.model_fields.get(name)
    if field is None:
        return None
    candidates: tuple[Any, ...] = (field.annotation, *get_args(field.annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
