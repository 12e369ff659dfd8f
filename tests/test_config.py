from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field, ValidationError, field_validator

from perdure.config import KIND, Config, MethodConfig, load, parse_override, settings
from perdure.errors import ConfigError, RecipeError


class Settings(MethodConfig):
    lr: float = Field(0.1, gt=0, le=1)
    epochs: int = Field(3, ge=1)
    head: Literal["linear", "cosine"] = "linear"
    sizes: list[int] | None = None
    flag: bool = False
    name: str = "plain"

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {"lr": 0.5, "head": "cosine"}, "empty": {}}

    @field_validator("name")
    @classmethod
    def _lower(cls, name: str) -> str:
        if name != name.lower():
            raise ValueError("in lower case")
        return name


class Needs(Config):
    data: str
    tasks: int


def problems(values: Mapping[str, Any], model: type[Config] = Settings) -> list[str]:
    with pytest.raises(RecipeError) as error:
        load(model, values)
    return [str(p) for p in error.value.problems]


def test_configurations_do_not_change() -> None:
    settings = load(Settings, {})
    with pytest.raises(ValidationError, match="frozen"):
        settings.lr = 0.2  # type: ignore[misc]
    assert settings.lr == 0.1
    assert settings == Settings()
    assert hash(settings) == hash(Settings())


def test_text_is_read_by_the_type_of_the_field() -> None:
    given = {"lr": "1e-3", "epochs": "7", "flag": "true", "head": "cosine", "sizes": ["1", 2], "name": "7"}
    assert load(Settings, given) == Settings(lr=1e-3, epochs=7, flag=True, head="cosine", sizes=[1, 2], name="7")


def test_presets_start_and_explicit_values_win() -> None:
    assert load(Settings, {"preset": "paper"}) == Settings(preset="paper", lr=0.5, head="cosine")
    assert load(Settings, {"preset": "paper", "lr": 0.2}).model_dump() == {
        **Settings().model_dump(), "preset": "paper", "lr": 0.2, "head": "cosine"
    }  # fmt: skip
    assert load(Settings, {"preset": "default"}) == Settings()
    assert load(Settings, {"preset": "empty"}).lr == 0.1
    assert Settings(preset="paper").head == "cosine"
    values = {"preset": "paper"}
    load(Settings, values)
    assert values == {"preset": "paper"}


@pytest.mark.parametrize("preset", ["papr", None, 3, ["paper"], {"paper": 1}])
def test_an_unknown_preset_is_named(preset: object) -> None:
    (problem,) = problems({"preset": preset})
    assert problem.startswith("Settings: preset must be ")
    assert repr(preset) in problem
    if isinstance(preset, str):
        assert problem.endswith(
            "the name of a preset, but got 'papr'. Did you mean 'paper'? Known: default, empty, paper."
        )


def test_a_config_without_presets_knows_no_preset() -> None:
    assert problems({"preset": "paper", "data": "x", "tasks": 1}, Needs)[0].startswith("Needs: key must be one of its")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"lr": 0}, "lr must be greater than 0, but got 0."),
        ({"lr": 1.5}, "lr must be less than or equal to 1, but got 1.5."),
        ({"lr": "nan"}, "lr must be a finite number, but got 'nan'."),
        ({"lr": float("inf")}, "lr must be a finite number, but got inf."),
        ({"epochs": 2.5}, "but got 2.5."),
        ({"epochs": "many"}, "but got 'many'."),
        ({"head": "round"}, "head must be 'linear' or 'cosine', but got 'round'."),
        ({"flag": "perhaps"}, "but got 'perhaps'."),
        ({"sizes": [1, "x"]}, "sizes.1 must be"),
        ({"name": "Loud"}, "name must be in lower case, but got 'Loud'."),
        ({"lrr": 1}, "key must be one of its fields, but got 'lrr'. Did you mean 'lr'?"),
        ({"colour": 1}, "but got 'colour'. Known: epochs, flag, head, lr, name, preset, sizes."),
    ],
)
def test_a_bad_value_is_named(values: dict[str, Any], told: str) -> None:
    (problem,) = problems(values)
    assert problem.startswith("Settings: ")
    assert told in problem


def test_a_missing_value_is_named() -> None:
    data, tasks = problems({}, Needs)
    assert data == "Needs: data must be given, but got None. Add 'data: ...' to the recipe or '-s ...data=...'."
    assert "tasks must be given" in tasks


def test_all_problems_come_at_once_under_the_name_asked_for() -> None:
    with pytest.raises(RecipeError) as error:
        load(Settings, {"lr": -1, "epochs": 0, "typo": 1}, where="method")
    assert len(error.value.problems) == 3
    assert all(str(p).startswith("method: ") for p in error.value.problems)
    assert "lr must" in str(error.value)
    assert "'typo'" in str(error.value)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("method.lr=0.01", ["method", "lr"], "0.01"),
        ("seed=3", ["seed"], "3"),
        ("stream.sizes=[1, 2]", ["stream", "sizes"], [1, 2]),
        ("stream.class_order=[a, b]", ["stream", "class_order"], ["a", "b"]),
        ("method={name: ranpac}", ["method"], {"name": "ranpac"}),
        ("stream.tasks=null", ["stream", "tasks"], None),
        ("stream.tasks=~", ["stream", "tasks"], None),
        ("stream.data=a=b", ["stream", "data"], "a=b"),
        ("stream.data=no: [yaml", ["stream", "data"], "no: [yaml"),
        ("name=", ["name"], ""),
    ],
)
def test_overrides(text: str, path: list[str], value: object) -> None:
    assert parse_override(text) == (path, value)


@pytest.mark.parametrize("text", ["method.lr", "", "=3", "method.=3", ".lr=3", "a..b=3", " =3"])
def test_an_override_needs_a_key_and_a_value(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_override(text)
    assert f"-s: override must be key=value, e.g. method.lr=0.01, but got {text!r}." in str(error.value)


@pytest.mark.parametrize("value", ["[1, 2", "{a: 1", "[}"])
def test_broken_yaml_is_named(value: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_override(f"stream.sizes={value}")
    assert f"-s: stream.sizes must be valid YAML after '=', but got {value!r}. Close" in str(error.value)


class Fast(Config):
    name: Literal["fast"] = "fast"
    rate: float = Field(1.0, gt=0)
    decay: float = Field(0.5, ge=0)


class Slow(Config):
    name: Literal["slow"] = "slow"
    rate: float = Field(0.1, gt=0)
    patience: int = Field(3, ge=1)


class Inner(Config):
    epochs: int = Field(2, ge=1)
    batch: int = Field(4, ge=1)
    pace: Fast | Slow = Field(Fast(), discriminator="name")


class Sectioned(MethodConfig):
    presets: ClassVar = {
        "paper": {"train": {"epochs": 9, "pace": {"name": "slow", "patience": 7}}, "top": {"name": "slow"}},
        "even": {"train": {"pace": {"decay": 9}}},
    }

    train: Inner = Inner(batch=32, pace=Fast(decay=0.25))
    top: Fast | Slow | None = Field(None, discriminator="name")
    vote: int = 0


@pytest.mark.parametrize(
    ("given", "train", "top"),
    [
        ({}, Inner(epochs=2, batch=32, pace=Fast(decay=0.25)), None),
        ({"train": {"epochs": 5}}, Inner(epochs=5, batch=32, pace=Fast(decay=0.25)), None),
        ({"train": {"pace": {"rate": 7}}}, Inner(batch=32, pace=Fast(rate=7, decay=0.25)), None),
        ({"train": {"pace": "slow"}}, Inner(batch=32, pace=Slow()), None),
        ({"train": {"pace": "fast"}}, Inner(batch=32, pace=Fast(decay=0.25)), None),
        ({"train": {"pace": {"name": "slow", "rate": 2}}}, Inner(batch=32, pace=Slow(rate=2)), None),
        ({"preset": "paper"}, Inner(epochs=9, batch=32, pace=Slow(patience=7)), Slow()),
        (
            {"preset": "paper", "train": {"batch": 8, "pace": {"rate": 3}}, "top": {"patience": 5}},
            Inner(epochs=9, batch=8, pace=Slow(rate=3, patience=7)), Slow(patience=5),
        ),
        (
            {"preset": "paper", "train": {"pace": "fast"}, "top": "none"},
            Inner(epochs=9, batch=32, pace=Fast()), None,
        ),
        ({"preset": "even", "train": {"pace": "slow"}}, Inner(batch=32, pace=Slow()), None),
        ({"preset": "even", "train": {"pace": "fast"}}, Inner(batch=32, pace=Fast(decay=9)), None),
        ({"preset": "paper", "top": None}, Inner(epochs=9, batch=32, pace=Slow(patience=7)), None),
        ({"top": {KIND: "slow", "rate": 4}}, Inner(batch=32, pace=Fast(decay=0.25)), Slow(rate=4)),
        ({"train": {"pace": {KIND: "slow", "rate": 4}}}, Inner(batch=32, pace=Slow(rate=4)), None),
        ({"top": "fast"}, Inner(batch=32, pace=Fast(decay=0.25)), Fast()),
        ({"train": Inner(), "top": Slow(rate=4)}, Inner(), Slow(rate=4)),
    ],
)  # fmt: skip
def test_sections_are_laid_over_defaults_and_presets_key_by_key(given: dict[str, Any], train: Inner, top: Any) -> None:
    config = Sectioned(**given)
    assert (config.train, config.top) == (train, top)
    assert Sectioned(**config.model_dump()) == config


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"train": {"epochs": 0}}, r"train\.epochs must be greater than or equal to 1, but got 0\. See"),
        ({"train": {"pace": {"rate": 0}}}, r"train\.pace\.rate must be greater than 0, but got 0\. See"),
        ({"train": {"epoch": 1}}, r"key must be one of its fields, but got 'train\.epoch'\. Did you mean 'epochs'\?"),
        ({"train": {"pace": {"patience": 1}}}, r"'train\.pace\.patience'\. Another kind of train\.pace has it\. Known"),
        ({"train": {"pace": "medium"}}, r"train\.pace\.name must be one of 'fast', 'slow', but got 'medium'\. Known"),
        ({"top": {"rate": 1}}, r"top\.name must be given, but got None\. Add 'top\.name: \.\.\.'"),
        ({"train": 3}, r"train must be a valid dictionary or instance of Inner, but got 3"),
        ({"epochs": 3}, r"key must be one of its fields, but got 'epochs'\. Write it as train\.epochs\."),
        ({"train_batch": 3}, r"but got 'train_batch'\. Write it as train\.batch\."),
        ({"rate": 3}, r"but got 'rate'\. Write it as train\.pace\.rate\."),
        ({"select_eval": "instance"}, r"but got 'select_eval'\. Write it as vote\."),
        ({"beta1": 0.9}, r"but got 'beta1'\. Known: preset, top, train, vote\."),
    ],
)  # fmt: skip
def test_a_bad_setting_of_a_section_is_named_by_its_path(given: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=f"^Sectioned: .*{told}"):
        load(Sectioned, given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"train": {"epochs": 0}}, "Sectioned: train.epochs must be greater than or equal to 1, but got 0. See"),
        ({"nope": 3}, "Sectioned: key must be one of its fields, but got 'nope'. Known"),
        ({"preset": "papr"}, "Sectioned: preset must be the name of a preset, but got 'papr'. Did you mean 'paper'"),
        ({"top": {"name": "slow", "patience": 0}}, "Sectioned: top.patience must be greater than or equal to 1, but"),
    ],
)
def test_the_constructor_and_but_refuse_as_load_does(given: dict[str, Any], told: str) -> None:
    refusals = []
    for make in (lambda: load(Sectioned, given), lambda: Sectioned(**given), lambda: Sectioned().but(**given)):
        with pytest.raises(RecipeError) as error:
            make()
        refusals.append(str(error.value))
    assert told in refusals[0]
    assert len(set(refusals)) == 1


def test_a_section_made_by_itself_names_itself() -> None:
    told = r"^2 problems:\n  - Inner: epochs must .* 0\..*\n  - Inner: batch must .* -1\."
    with pytest.raises(RecipeError, match=told):
        Inner(epochs=0, batch=-1)


def test_every_setting_is_listed_with_its_path() -> None:
    assert [path for path, _ in settings(Sectioned)] == [
        "preset", "train.epochs", "train.batch", "train.pace.name", "train.pace.rate", "train.pace.decay",
        "train.pace.name", "train.pace.rate", "train.pace.patience", "top.name", "top.rate", "top.decay", "top.name",
        "top.rate", "top.patience", "vote",
    ]  # fmt: skip
