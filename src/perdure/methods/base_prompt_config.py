"""Settings of the prompt methods that they share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from perdure.modules.heads import HeadInit
from perdure.train.loop import OptimizerName, ScheduleName
from perdure.train.schedule import ScheduledConfig


class PromptConfig(ScheduledConfig):
    """Settings of training, the same for all prompt methods."""

    lr: float = Field(1e-3, gt=0, description="learning rate")
    scale_lr: bool = Field(False, description="multiply lr by batch_size / 256, the linear scaling rule")
    epochs: int = Field(5, ge=1, description="passes over each task")
    batch_size: int = Field(16, ge=1, description="images per step")
    optimizer: OptimizerName = Field("adam", description="of prompts, keys and head; new at every task")
    schedule: ScheduleName = Field("constant", description="of the learning rate")
    weight_decay: float = Field(0.0, ge=0, description="of everything that learns")
    clip_norm: float | None = Field(1.0, gt=0, description="largest norm of all gradients together; null: no clipping")
    min_scale: float = Field(0.5, gt=0, le=1, description="smallest area a random crop keeps; 1: no crop")
    flip: bool = Field(True, description="mirror half of the training images")
    shuffle: bool = Field(True, description="draw the order of the training images anew in every epoch")
    drop_last: Literal["never", "from_4_batches", "always"] = Field(
        "never", description="leave out an epoch's last, smaller batch"
    )
    train_logits: Literal["current", "seen"] = Field(
        "current", description="classes in the training loss: the task's own, or all seen"
    )
    head_init: HeadInit = Field("normal_0.02", description="initial weights of new classes")
    query_view: Literal["augmented", "clean"] = Field(
        "augmented", description="clean takes training queries from the eval view: cached, but changes results"
    )


class SelectionConfig(PromptConfig):
    """Settings of the methods that choose prompts by matching queries and keys."""

    select_eval: Literal["instance", "batch_vote"] = Field(
        "instance", description="batch_vote: the test batch chooses together, so results depend on its composition"
    )
    eval_batch: int = Field(16, ge=1, description="images that choose together in a test, if they do at all")
    eval_order: Literal["stored", "class_sorted", "shuffled"] = Field(
        "stored", description="order in which test images form voting batches; class_sorted uses their labels"
    )
