"""LAE's training in the session: what a method's own lines come to."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from perdure import FeatureStore
from perdure.checks.subject import small_stream
from perdure.methods import lae
from perdure.methods.lae import LAE
from tiny_vit import tiny

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"
TRAIN = {"lr": 0.5, "epochs": 3, "batch_size": 4}


def test_the_page_on_architecture_shows_the_method_itself() -> None:
    [shown] = re.findall(r"```python\n(.*?)```", ARCHITECTURE.read_text("utf-8"), flags=re.DOTALL)
    source = textwrap.dedent(inspect.getsource(LAE._learn))
    assert shown == source
    assert len([line for line in source.splitlines() if line.strip()]) <= 22


def test_the_offline_module_is_the_average_by_hand(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 6: a copy of the first task's result; then every step follows, during the held epochs too."""
    stream, turnover = small_stream((2, 2)), 0.6
    method: Any = LAE(tiny(), {"train": TRAIN, "held": 0.4, "turnover": turnover}, store=store).fit_task(stream[0])
    start = [p.clone() for p in method.offline_.parameters()]
    seen, plain = [], lae.pull_

    def spy(offline: Any, online: Any, share: float) -> None:
        seen.append([p.clone() for p in online])
        plain(offline, online, share)

    monkeypatch.setattr(lae, "pull_", spy)
    method.fit_task(stream[1])
    assert len(seen) == 9
    for step, online in enumerate(seen):
        assert all(map(torch.equal, online, start)) == (step < 3)
    wanted, alpha = start, (1 - turnover) ** (1 / 9)
    for online in seen:
        wanted = [off + (1 - alpha) * (on - off) for off, on in zip(wanted, online, strict=True)]
    for off, by_hand in zip(method.offline_.parameters(), wanted, strict=True):
        torch.testing.assert_close(off, by_hand)
    assert not any(map(torch.equal, method.offline_.parameters(), method.online_.parameters()))
