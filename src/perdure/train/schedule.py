"""The settings that say how the learning rate changes while a task is learned."""

from __future__ import annotations

import warnings

from pydantic import Field, ValidationInfo, field_validator

from perdure.config import MethodConfig
from perdure.train.loop import ScheduleName


class ScheduledConfig(MethodConfig):
    """Settings of every method that has a choice of schedules.

    Whoever gives ``milestone`` another default keeps ``validate_default``, so that a default out of reach is told.
    """

    epochs: int = Field(ge=1, description="passes over each task")
    schedule: ScheduleName = Field(description="of the learning rate")
    milestone: int | None = Field(
        None, ge=1, validate_default=True, description="of that schedule: the epoch, from 0, at which a tenth begins"
    )

    @field_validator("milestone")
    @classmethod
    def _milestone_is_told_and_reached(cls, milestone: int | None, info: ValidationInfo) -> int | None:
        if info.data.get("schedule") != "milestone":
            return milestone
        if milestone is None:
            raise ValueError("an epoch from 1 on, for schedule=milestone")
        if milestone >= (epochs := info.data.get("epochs", milestone + 1)):
            warnings.warn(f"{cls.__name__}: milestone={milestone} is never reached in {epochs} epochs", stacklevel=2)
        return milestone
