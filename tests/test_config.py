from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field, ValidationError, field_validator

from perdure.config import Config, MethodConfig, load, parse_override
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
        assert "one of ['default', 'empty', 'paper']" in problem


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
