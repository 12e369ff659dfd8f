"""Settings in Python: as a Config, as plain values, by keyword, or mixed; bad ones are named."""

from __future__ import annotations

from typing import Any

import pytest

from perdure import Backbone, FeatureStore
from perdure.errors import ConfigError, RecipeError
from perdure.methods.finetune import Finetune
from perdure.methods.ranpac import RanPAC
from perdure.methods.simplecil import SimpleCIL

Config = RanPAC.Config


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (None, {"projection_dim": 10, "ridge": "fixed"}),
        ({"projection_dim": 10, "ridge": "fixed"}, {}),
        ({"projection_dim": 12, "ridge": "fixed"}, {"projection_dim": 10}),
        (Config(projection_dim=10, ridge="fixed"), {}),
        (Config(projection_dim=12, ridge="fixed"), {"projection_dim": 10}),
    ],
)
def test_however_settings_are_given_they_are_the_same(config: Any, settings: Any, backbone: Backbone) -> None:
    method = RanPAC(backbone, config, **settings)
    assert method.config == Config(projection_dim=10, ridge="fixed")
    assert type(method.config) is Config


def test_nothing_given_is_the_defaults(backbone: Backbone) -> None:
    assert RanPAC(backbone).config == RanPAC(backbone, {}).config == Config()
    given = Config(projection_dim=10)
    assert RanPAC(backbone, given).config is given


def test_sections_are_laid_over_key_by_key(backbone: Backbone) -> None:
    under = {"train": {"epochs": 3, "lr": 0.5}}
    assert Finetune(backbone, under, train={"epochs": 7}).config.train.model_dump() == {
        **Finetune.Config(**under).train.model_dump(), "epochs": 7,
    }  # fmt: skip


def test_seed_and_store_are_no_settings(backbone: Backbone, store: FeatureStore) -> None:
    method = RanPAC(backbone, projection_dim=10, seed=5, store=store)
    assert (method.seed, method.store is store, method.config) == (5, True, Config(projection_dim=10))


@pytest.mark.parametrize(
    ("config", "settings", "told"),
    [
        (None, {"projection_dimm": 10}, ["RanPAC: key must be", "'projection_dimm'. Did you mean 'projection_dim'"]),
        ({"projektion_dim": 10}, {}, ["projektion_dim", "projection_dim"]),
        (None, {"projection_dim": -1}, ["projection_dim", "got -1"]),
        (Config(), {"projection_dim": -4}, ["projection_dim", "got -4"]),
        ({"ridge": "none at all"}, {"projection_dim": "many"}, ["none at all", "many"]),
    ],
)
def test_bad_settings_are_named_all_at_once(config: Any, settings: Any, told: list[str], backbone: Backbone) -> None:
    with pytest.raises(RecipeError) as error:
        RanPAC(backbone, config, **settings)
    assert all(text in str(error.value) for text in told), str(error.value)


@pytest.mark.parametrize("bad", [SimpleCIL.Config(), 10, "projection_dim=10", [("projection_dim", 10)]])
def test_what_is_no_configuration_of_this_method_is_refused(bad: Any, backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match=r"RanPAC: config must be a .* or values by key, but got") as error:
        RanPAC(backbone, bad)
    assert repr(bad) in str(error.value)
    assert "Give RanPAC.Config(...), a dict, or the settings by keyword" in str(error.value)
    with pytest.raises(ConfigError):
        RanPAC(backbone, bad, projection_dim=10)
