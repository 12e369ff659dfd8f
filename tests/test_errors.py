from __future__ import annotations

import copy
import pickle

import pytest

from perdure import errors
from perdure.errors import (
    BackboneError,
    ConfigError,
    NonFiniteError,
    PerdureError,
    RecipeError,
    UnknownNameError,
    UsageError,
    did_you_mean,
)
from perdure.methods import methods

EVERY = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, PerdureError)]
PLAIN = [e for e in EVERY if e not in (RecipeError, NonFiniteError)]


def test_a_message_names_who_what_and_the_next_step() -> None:
    error = PerdureError("RanPACConfig", "lr", "positive", -1.5, "Raise it")
    assert str(error) == "RanPACConfig: lr must be positive, but got -1.5. Raise it."
    assert (error.where, error.name, error.must_be, error.got, error.hint) == error.args


@pytest.mark.parametrize(
    ("got", "shown"),
    [
        ("word", "'word'"),
        (None, "None"),
        (["one"], "['one']"),
        ([1, 2], "[1, 2]"),
        (["a.jpg", "b.jpg"], "\n    a.jpg\n    b.jpg\n "),
        (("a.jpg", "b.jpg"), "\n    a.jpg\n    b.jpg\n "),
    ],
)
def test_the_offending_value_is_shown(got: object, shown: str) -> None:
    assert str(PerdureError("w", "n", "c", got, "Do it")) == f"w: n must be c, but got {shown}. Do it."


def test_many_problems_are_listed_together() -> None:
    one, two = (ConfigError("A", name, "right", value, "Fix it") for name, value in (("x", 1), ("y", 2)))
    assert str(RecipeError([one])) == str(one)
    both = RecipeError([one, two])
    assert str(both) == f"2 problems:\n  - {one}\n  - {two}"
    assert both.problems == (one, two)
    assert (both.where, both.name, both.got) == ("A", "x", 1)


def test_a_non_finite_feature_names_its_image() -> None:
    error = NonFiniteError("cats/3.jpg")
    assert str(error).startswith("Backbone.features: features of image cats/3.jpg must be finite, but got nan.")
    assert isinstance(error, BackboneError)


@pytest.mark.parametrize("kind", PLAIN, ids=lambda k: k.__name__)
def test_plain_errors_survive_pickling_and_copying(kind: type[PerdureError]) -> None:
    error = kind("w", "n", "c", ["a", "b"], "Do it")
    for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(again) is kind
        assert str(again) == str(error)
        assert again.got == ["a", "b"]


def test_errors_of_their_own_shape_survive_pickling() -> None:
    recipe = RecipeError([ConfigError("A", "x", "right", 1, "Fix it"), UnknownNameError("B", "y", "known", 2, "Look")])
    for error in (recipe, NonFiniteError(4), NonFiniteError("a.jpg")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
    assert [type(p) for p in pickle.loads(pickle.dumps(recipe)).problems] == [ConfigError, UnknownNameError]
    assert pickle.loads(pickle.dumps(NonFiniteError(4))).image == 4


@pytest.mark.parametrize("kind", EVERY, ids=lambda k: k.__name__)
def test_exit_codes(kind: type[PerdureError]) -> None:
    assert kind.exit_code == (2 if issubclass(kind, UsageError) else 1)


def test_usage_errors_are_those_of_the_request() -> None:
    usage = {k.__name__ for k in EVERY if issubclass(k, UsageError)}
    assert {"ConfigError", "UnknownNameError", "SplitError", "DataNotFoundError", "RecipeError"} <= usage
    assert not {"DataError", "BackboneError", "StorageError", "CheckpointError", "TrainingError"} & usage


def test_few_names_are_all_told() -> None:
    assert did_you_mean("ranpca", ["simplecil", "ranpac"]) == "Did you mean 'ranpac'? Known: ranpac, simplecil"
    assert did_you_mean("zzz", ["simplecil", "ranpac"]) == "Known: ranpac, simplecil"
    assert did_you_mean("RANPAC", ["ranpac"]).startswith("Did you mean 'ranpac'?")
    assert did_you_mean("anything", []) == "Known: "


def test_of_many_names_only_the_close_ones_are_told() -> None:
    many = [f"name{i}" for i in range(81)] + ["ranpac"]
    assert did_you_mean("ranpak", many) == "Did you mean 'ranpac'? 82 names are known"
    assert did_you_mean("zzz", many) == "82 names are known"
    assert did_you_mean("zzz", many[:60]).startswith("Known: name0, name1")


def test_at_most_three_close_names_the_closest_first() -> None:
    names = ["alpha", "alpha1", "alpha22", "alpha333", "beta"]
    assert did_you_mean("alpha1", names).startswith("Did you mean 'alpha1' or ")
    assert did_you_mean("alpha", names).split("?")[0].count("'alpha") == 3


@pytest.mark.parametrize("n", [3, 50])
def test_close_names_need_not_be_neighbours(n: int) -> None:
    names = [f"{letter}_filler_{i}" for i, letter in zip(range(n), "abcdefghijklmnopqrstuvwxyz" * 2, strict=False)]
    names += ["ranpac", "anpack", "zanpac"]
    for word in ("ranpca", "anpac", "RANPAC_"):
        told = did_you_mean(word, names).split("?")[0]
        assert all(repr(name) in told for name in ("ranpac", "anpack", "zanpac")), told
        assert "filler" not in told


def test_every_name_is_found_by_any_slip_of_a_letter() -> None:
    names = methods.names()
    for name in names:
        slips = {
            name[:i] + letter + name[i + cut :] for i in range(len(name)) for letter in ("", "x") for cut in (0, 1)
        }
        for slip in slips - set(names) - {"a"}:
            assert repr(name) in did_you_mean(slip, names).split("?")[0], slip


def test_an_alias_stands_for_its_name_once() -> None:
    names = ["aper", "joint", "ada_x"]
    assert did_you_mean("adam1", names, {"adam": "aper", "adam2": "aper"}) == (
        "Did you mean 'aper' or 'ada_x'? Known: ada_x, aper, joint"
    )
    assert did_you_mean("aper", ["aper"], {"aper": "another"}).startswith("Did you mean 'aper'?"), "names come first"


def test_the_beginning_of_a_long_name_finds_it() -> None:
    assert "'vit_base_patch16_224.augreg_in21k'" in did_you_mean("vit_base", ["vit_base_patch16_224.augreg_in21k"])
