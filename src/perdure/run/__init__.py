"""Recipes, runs that resume, and their reports."""

from perdure.run.recipe import Recipe, load_recipe
from perdure.run.results import Results
from perdure.run.runner import Runner, read_results

__all__ = ["Recipe", "Results", "Runner", "load_recipe", "read_results"]
