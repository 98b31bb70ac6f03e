"""Small trained models that ship with the package, and the recipes that train them."""

from tl_backward._support.submodules import offer
from tl_backward.model.shipped import names as names
from tl_backward.zoo import addition as addition
from tl_backward.zoo import counting as counting
from tl_backward.zoo import facts as facts
from tl_backward.zoo.facts_edits import edit_cases as edit_cases
from tl_backward.zoo.loading import load as load
from tl_backward.zoo.recipes import RECIPES as RECIPES
from tl_backward.zoo.recipes import Recipe as Recipe

__all__ = ["load", "names", "facts", "counting", "addition", "edit_cases", "RECIPES", "Recipe"]

offer(__name__, {})
