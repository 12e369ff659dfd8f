"""What holds for the settings of every registered method: a method that is added is held to it without being named."""

from __future__ import annotations

from typing import Any

import pytest
from torch.optim.optimizer import register_optimizer_step_pre_hook

from perdure.checks.subject import small_stream
from perdure.config import load
from perdure.errors import RecipeError
from perdure.methods import Method, methods
from tiny_vit import tiny

WITH_SCHEDULE = [name for name in methods.names() if "schedule" in methods.get(name).Config.model_fields]
TRAINED = [name for name in methods.names() if "epochs" in methods.get(name).Config.model_fields]


def rates_of(name: str, **settings: Any) -> tuple[Method[Any], list[list[float]]]:
    """A method that has learned a task of 12 images in batches of 8, and its groups' learning rates at every step."""
    kind, rates = methods.get(name), []
    adapts = {"adapt": "adapter"} if "adapt" in kind.Config.model_fields else {}
    config = kind.Config(**{**kind.tags.small, **adapts, "batch_size": 8, **settings})
    method = kind(tiny(depth=3), config)
    hook = register_optimizer_step_pre_hook(lambda o, *_: rates.append([group["lr"] for group in o.param_groups]))
    try:
        method.fit_task(small_stream()[0])
    finally:
        hook.remove()
    return method, rates


@pytest.mark.parametrize("name", WITH_SCHEDULE)
def test_a_milestone_is_where_the_rate_becomes_a_tenth(name: str) -> None:
    """Two epochs of two steps at the peak, then one epoch at a tenth of it, in every group."""
    method, rates = rates_of(name, schedule="milestone", milestone=2, epochs=3)
    c = method.config
    assert len(rates) == 6
    assert rates[0][0] == pytest.approx(c.lr * c.batch_size / 256 if getattr(c, "scale_lr", False) else c.lr)
    for step, by_group in enumerate(rates):
        assert by_group == pytest.approx([peak * (1 if step < 4 else 0.1) for peak in rates[0]], rel=1e-12)


@pytest.mark.parametrize("name", WITH_SCHEDULE)
def test_a_milestone_is_told_or_refused_at_the_door(name: str) -> None:
    """A default of the method's own is told where it cannot be reached."""
    config = methods.get(name).Config
    with pytest.raises(RecipeError, match=r"milestone must be .* for schedule=milestone, but got None"):
        load(config, {"schedule": "milestone", "milestone": None})
    if config.model_fields["milestone"].default is not None:
        with pytest.warns(UserWarning, match="is never reached in 1 epochs"):
            load(config, {"schedule": "milestone", "epochs": 1})


@pytest.mark.parametrize("name", TRAINED)
def test_a_cosine_counts_the_short_last_batch_as_a_step(name: str) -> None:
    """12 images are two steps of 8: the second is half-way down, neither at the peak nor at zero."""
    schedule = {"schedule": "cosine"} if name in WITH_SCHEDULE else {}  # those without a choice have a cosine
    _, rates = rates_of(name, epochs=1, **schedule)
    assert len(rates) == 2
    assert rates[1] == pytest.approx([peak / 2 for peak in rates[0]], rel=1e-12)
