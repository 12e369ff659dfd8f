"""``results.json``: the interface between a run and everything that reads it. Versioned; its schema is in ``docs/``."""

from __future__ import annotations

import dataclasses as dc
import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

VERSION = 1


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite_or_none)]
"""A float; null where it is not defined (forgetting of a single task, accuracy on a task without test images)."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Metrics(_Part):
    """Fractions between 0 and 1 (forgetting and backward transfer between -1 and 1)."""

    last_accuracy: Number = Field(description="after the last task, over all test images")
    last_accuracy_over_tasks: Number = Field(description="after the last task, mean of the tasks' accuracies")
    average_incremental_accuracy: Number = Field(description="mean over tasks of the accuracy over images so far")
    average_incremental_accuracy_over_tasks: Number = Field(description="the same of the mean over tasks so far")
    forgetting: Number = Field(description="Chaudhry et al. 2018")
    backward_transfer: Number = Field(description="Lopez-Paz & Ranzato 2017")
    top5: Number = Field(description="after the last task, true class among the five best-scored")
    ece: Number = Field(description="after the last task, 15 bins, softmax of the scores")
    accuracy_after_task: list[Number] = Field(description="over all test images seen so far, after each task")
    zero_shot_transfer: Number = Field(
        None, description="mean of zero_shot_accuracy; null for a method that scores only classes that it was taught"
    )
    zero_shot_accuracy: list[Number] | None = Field(
        None,
        description="after each task, on images of classes not taught yet, among the names of these (of a data set)",
    )


class OverSets(_Part):
    """Three means of accuracies over several data sets."""

    accuracy_matrix: list[list[Number]] = Field(
        description="row: after the last task of a data set; column: on which set's test images; null: not scored"
    )
    transfer: Number = Field(description="mean over sets of the accuracy before they are taught")
    average: Number = Field(description="mean of the whole matrix")
    last: Number = Field(description="mean after the last data set")


class DataSets(OverSets):
    """Of a stream over several data sets: every test image is answered with a class of its own set, which is told
    (MTIL, Zheng et al. 2023)."""

    names: list[str] = Field(description="short names, in order of arrival")
    of_task: list[str] = Field(description="the data set that each task is from")
    untold: OverSets | None = Field(
        None, description="among all classes of all sets, taught or not, the set not told (X-TAIL, Xu et al. 2024)"
    )


class Fairness(_Part):
    """What a method uses and keeps beside the images of its tasks, by which rows of a table may differ."""

    class_names: bool = Field(description="whether it uses its classes' names")
    exemplars: int = Field(description="images kept for later training")
    features_kept: bool = Field(description="whether it keeps something else of every training image")
    extra_data: str | None = Field(description="what else it learns from; null for nothing")
    towers: int = Field(description="1, one more where a text tower reads class names, and one for a booster")


class Member(_Part):
    """What one member of the method would reach alone; fractions between 0 and 1, of all test images alike."""

    last_accuracy: Number = Field(description="after the last task, over all test images")
    average_incremental_accuracy: Number = Field(description="mean over tasks of the accuracy over images so far")
    forgetting: Number = Field(description="Chaudhry et al. 2018")
    accuracy_after_task: list[Number] = Field(description="over all test images seen so far, after each task")


class Cost(_Part):
    """What the run cost; whole run, summed over resumed sessions."""

    passes_per_train_image: float = Field(description="images sent through the backbone in training / train images")
    passes_per_test_image: float = Field(description="images sent through the backbone in testing / test images")
    train_seconds: float
    eval_seconds: float
    train_seconds_per_task: list[float]
    eval_seconds_per_task: list[float]
    peak_rss_bytes: int | None = Field(description="most resident memory of the process; null where unknown")
    learned_parameters: int = Field(description="fitted numbers used in a prediction")
    stored_bytes: int = Field(description="tensors of the whole learned state")
    exemplars: int = Field(description="images kept for later training")


@dc.dataclass(frozen=True, slots=True)
class TaskCost:
    """What one task cost; ``cost.json`` in its directory."""

    train_seconds: float
    eval_seconds: float
    train_passes: int
    test_passes: int
    peak_rss_bytes: int | None
    learned_parameters: int
    stored_bytes: int
    exemplars: int = 0


class Selection(_Part):
    """Which prompts the tests choose after one task, out of those that the method has then."""

    shares: list[list[float] | None] = Field(
        description="by task tested so far: each prompt's share of the choices, 0 to 1; null for a task without tests"
    )
    entropy: Number = Field(
        description="of all tests' shares in units of its maximum: 1 all alike, 0 one serves all; null if just one"
    )


class Provenance(_Part):
    """Where the numbers come from."""

    recipe: dict[str, Any]
    command: str
    versions: dict[str, str]
    fingerprints: dict[str, str]
    machine: dict[str, Any]
    depends_on_test_batch: bool
    quarantined: list[str]
    started: str
    finished: str


class Results(_Part):
    """One finished run."""

    version: int = VERSION
    accuracy_matrix: list[list[Number]] = Field(description="row: after task; column: task tested; null above diagonal")
    test_images_per_task: list[int]
    metrics: Metrics
    class_accuracy: dict[str, float] = Field(description="after the last task, by class id")
    class_names: dict[str, str] = Field(description="by class id")
    display_names: dict[str, str] | None = Field(None, description="by class id: the names for people")
    task_classes: list[list[int]] = Field(description="class ids of each task, in order of arrival")
    cost: Cost
    selection: list[Selection | None] | None = Field(
        None, description="after each task (null: not recorded); null for a method that does not choose prompts"
    )
    members: dict[str, Member] | None = Field(
        None, description="by name: each member of the method alone; null for a method of which no part decides alone"
    )
    datasets: DataSets | None = Field(None, description="null for a stream over one data set")
    fairness: Fairness | None = Field(None, description="null where it was not recorded")
    provenance: Provenance

    @property
    def names(self) -> dict[str, str]:
        """What people call the classes, by id; those of several data sets with their set in front."""
        names = {**self.class_names, **(self.display_names or {})}
        if self.datasets is None:
            return names
        sets = zip(self.task_classes, self.datasets.of_task, strict=True)
        return {**names, **{str(c): f"{name}/{names[str(c)]}" for classes, name in sets for c in classes}}
