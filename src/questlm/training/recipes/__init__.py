"""Recipes: small objects that change a training step. The loop calls them and knows none by name.

To add one, write a `Recipe` in a file of its own and name what makes it in BUILT_IN. One of your own is registered in a
plugin (docs/howto/optimizers-and-recipes.md). A run without a recipe pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from questlm.config import TrainConfig
from questlm.errors import ConfigError
from questlm.plugins import Table
from questlm.training.recipes.base import Beginning, FrozenModel, Moment, Recipe
from questlm.training.recipes.cage import Cage
from questlm.training.recipes.distill import Distill
from questlm.training.recipes.fade_in import FadeIn
from questlm.training.recipes.more_bits import MoreBitsFirst
from questlm.training.recipes.weight_decay import WeightDecay

__all__ = [
    "BUILT_IN",
    "RECIPES",
    "Beginning",
    "Cage",
    "Distill",
    "FadeIn",
    "FrozenModel",
    "Moment",
    "MoreBitsFirst",
    "Recipe",
    "WeightDecay",
    "active_recipes",
    "named_recipes",
    "register_recipe",
]

BUILT_IN: tuple[Callable[[TrainConfig, nn.Module], Recipe | None], ...] = (
    FadeIn.from_settings,
    MoreBitsFirst.from_settings,
    WeightDecay.from_settings,
    Cage.from_settings,
    Distill.from_settings,
)
"""Each has settings of its own, and gives None where they do not ask for it."""

RECIPES: Table[Callable[..., Recipe]] = Table("recipe", "questlm.recipes", callable, "what makes a Recipe", {})
"""Recipes that `train.recipes` asks for by name, made from the settings given there."""


def register_recipe(name: str, make: Callable[..., Recipe]) -> None:
    """Add a recipe of your own under a name, by which `train.recipes` asks for it.

    Args:
        name: up to 64 letters, digits, '.', '+', '_' and '-'.
        make: the class, or a function: called with the settings given under the name, as keywords.

    Raises:
        ConfigError: the name is taken or is not such a word.
    """
    RECIPES.register(name, make)


def active_recipes(train: TrainConfig, model: nn.Module) -> list[Recipe]:
    """The recipes that the settings and the model ask for, in the order in which they are called.

    Raises:
        ConfigError: as `named_recipes`.
    """
    made = (make(train, model) for make in BUILT_IN)
    return [recipe for recipe in made if recipe is not None] + named_recipes(train)


def named_recipes(train: TrainConfig) -> list[Recipe]:
    """The recipes of `train.recipes`.

    Raises:
        ConfigError: no recipe of a name, or it does not take the settings given.
    """
    return [_make(name, settings) for name, settings in train.recipes.items()]


def _make(name: str, settings: dict[str, bool | int | float | str | None]) -> Recipe:
    make = RECIPES.find(name)
    try:
        recipe = make(**settings)
    except (TypeError, ValueError) as problem:
        raise ConfigError(f"train.recipes.{name} = {settings} cannot be used: {problem}") from problem
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"the recipe {name!r} makes a {type(recipe).__name__}, not a questlm.training.recipes.Recipe")
    return recipe
