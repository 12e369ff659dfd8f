"""The one rule for milestones: whoever chooses that schedule says where it lies, and hears if it is never reached."""

from __future__ import annotations

import warnings

import pytest
from pydantic import Field

from perdure.config import load
from perdure.errors import RecipeError
from perdure.train.loop import ScheduleName
from perdure.train.schedule import ScheduledConfig


class Sevenfold(ScheduledConfig):
    """Seven epochs at a constant rate."""

    epochs: int = Field(7, ge=1)
    schedule: ScheduleName = "constant"


class WithDefault(Sevenfold):
    """A milestone of its own, out of reach."""

    schedule: ScheduleName = "milestone"
    milestone: int | None = Field(9, ge=1, validate_default=True)


def test_a_milestone_must_be_told_where_it_is_used_and_nowhere_else() -> None:
    told = r"Sevenfold: milestone must be an epoch from 1 on, for schedule=milestone, but got None"
    with pytest.raises(RecipeError, match=told):
        load(Sevenfold, {"schedule": "milestone"})
    with pytest.raises(RecipeError, match=r"milestone must be .*for schedule=milestone, but got None"):
        load(WithDefault, {"milestone": None})
    with pytest.raises(RecipeError, match=r"milestone must be greater than or equal to 1, but got 0"):
        load(Sevenfold, {"schedule": "milestone", "milestone": 0})
    assert load(Sevenfold, {"schedule": "milestone", "milestone": 1}).milestone == 1
    assert Sevenfold().milestone is None


@pytest.mark.parametrize("schedule", ["epoch_cosine", "mielstone"])
def test_other_schedules_take_no_notice_of_it(schedule: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if schedule == "epoch_cosine":
            assert load(WithDefault, {"schedule": schedule}).milestone == 9
        else:
            with pytest.raises(RecipeError, match=r"schedule must be .*'mielstone'"):
                load(WithDefault, {"schedule": schedule})


@pytest.mark.parametrize(
    ("config", "values", "told"),
    [
        (Sevenfold, {"schedule": "milestone", "milestone": 7}, "Sevenfold: milestone=7 is never reached in 7 epochs"),
        (WithDefault, {}, "WithDefault: milestone=9 is never reached in 7 epochs"),
    ],
)
def test_a_milestone_out_of_reach_is_told(config: type[Sevenfold], values: dict[str, object], told: str) -> None:
    with pytest.warns(UserWarning, match=told):
        load(config, values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(config, {"schedule": "milestone", "milestone": 6})
        with pytest.raises(RecipeError, match="epochs must be greater than or equal to 1, but got 0"):
            load(config, {"schedule": "milestone", "milestone": 6, "epochs": 0})
