"""Recipes: small objects that change a training step. The loop calls them and knows none by name.

To add one, write a `Recipe` in a file of its own and name it in RECIPES. A run without it pays nothing, because
`active_recipes` leaves it out.
"""

from __future__ import annotations

from torch import nn

from questlm.config import TrainConfig
from questlm.training.recipes.base import Moment, Recipe
from questlm.training.recipes.cage import Cage
from questlm.training.recipes.fade_in import FadeIn
from questlm.training.recipes.weight_decay import WeightDecay

__all__ = ["RECIPES", "Cage", "FadeIn", "Moment", "Recipe", "WeightDecay", "active_recipes"]

RECIPES: tuple[type[Recipe], ...] = (FadeIn, WeightDecay, Cage)


def active_recipes(train: TrainConfig, model: nn.Module) -> list[Recipe]:
    """The recipes that the settings and the model ask for, in the order in which they are called."""
    made = (recipe.from_settings(train, model) for recipe in RECIPES)
    return [recipe for recipe in made if recipe is not None]
