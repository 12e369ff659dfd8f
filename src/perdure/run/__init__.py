"""Recipes, runs that resume, and their reports."""

from perdure.run.reading import read_method, read_results
from perdure.run.recipe import Recipe, load_recipe
from perdure.run.results import Results
from perdure.run.runner import Runner

__all__ = ["Recipe", "Results", "Runner", "load_recipe", "read_method", "read_results"]
