"""Recipes, runs that resume, and their reports."""

from typing import TYPE_CHECKING

from perdure.lazy import on_demand

if TYPE_CHECKING:
    from perdure.run.merger import merge
    from perdure.run.reading import read_results
    from perdure.run.recipe import Recipe, load_recipe
    from perdure.run.results import Results
    from perdure.run.runner import Runner, run_recipe
    from perdure.run.saved import load, save
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = ["Recipe", "Results", "Runner", "load", "load_recipe", "merge", "read_results", "run_recipe", "save"]
