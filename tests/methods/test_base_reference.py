"""Methods that learn from reference data: what they need of it, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from perdure import FeatureStore, load, save
from perdure.backbone.clip import tiny_clip
from perdure.checks.subject import equal, frozen_state, small_reference, small_stream
from perdure.data import Candidate, Reference
from perdure.errors import BackboneError, ConfigError
from perdure.methods.base_reference import ReferenceConfig
from perdure.methods.zscl import ZSCL
from tiny_clip import clip


def zscl(store: FeatureStore, reference: Reference | None, **settings: Any) -> ZSCL:
    return ZSCL(clip(), ZSCL.Config(**{**ZSCL.tags.small, **settings}), store=store, reference=reference)


def test_it_is_asked_for_when_a_task_comes(store: FeatureStore) -> None:
    method = zscl(store, None)
    with pytest.raises(ConfigError, match=r"reference must be given.*but got None\. Write reference: \{images: FOLDER"):
        method.fit_task(small_stream()[0])
    assert (method.classes_, method.reference_) == ([], "")
    method.reference = small_reference()
    method.fit_task(small_stream()[0])
    assert method.reference_ == small_reference().fingerprint
    assert ReferenceConfig().uses_reference


def test_it_is_the_same_in_all_tasks(store: FeatureStore) -> None:
    method, data = zscl(store, small_reference()).fit_task(small_stream()[0]), small_reference()
    before = frozen_state(method)
    method.reference = Reference(data.images, data.sentences[::-1])
    with pytest.raises(ConfigError, match=f"the data it was taught with \\({data.fingerprint}\\), but got '"):
        method.fit_task(small_stream()[1])
    assert equal(before, method.state_dict())


def test_a_method_that_was_loaded_predicts_without(store: FeatureStore, tmp_path: Path) -> None:
    stream = small_stream()
    method = zscl(store, small_reference()).fit_task(stream[0])
    save(method, tmp_path / "saved")
    again = load(tmp_path / "saved", backbone=tiny_clip(), store=store)
    assert torch.equal(again.scores(stream.test(0)), method.scores(stream.test(0)))
    strange = [Candidate("strange", "strange")]
    assert torch.equal(*(torch.cat(list(m.scores_among(stream.test(0), strange))) for m in (again, method)))
    with pytest.raises(ConfigError, match="reference must be given"):
        again.fit_task(stream[1])
    assert isinstance(again, ZSCL)
    again.reference = small_reference()
    assert equal(again.fit_task(stream[1]).state_dict(), method.fit_task(stream[1]).state_dict())


def test_a_sentence_that_is_too_long_is_refused_before_anything_is_learned(store: FeatureStore) -> None:
    data = Reference(small_reference().images, ["fine", "word " * 80])
    with pytest.raises(BackboneError, match="reference sentence in line 2 must be of at most 77 tokens"):
        zscl(store, data).require_names(small_stream().candidates)
    with pytest.raises(BackboneError, match="reference sentence in line 2"):
        zscl(store, data).fit_task(small_stream()[0])
    with pytest.raises(ConfigError, match="reference must be given"):
        zscl(store, None).require_names(small_stream().candidates)
    zscl(store, None, preset="finetune", distill=None).require_names(small_stream().candidates)
