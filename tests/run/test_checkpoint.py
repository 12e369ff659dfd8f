"""States on disk: exact, safe, and checked before they are believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from perdure.errors import CheckpointError
from perdure.run.checkpoint import load_state, save_state, tensor_bytes


def test_nested_states_come_back_as_they_were(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    state = {
        "a_": shared,
        "view_": shared.T,  # a view of the same storage, not contiguous
        "alias_": shared,
        "row_": shared[1],
        "empty_": torch.zeros(0, 4, dtype=torch.float64),
        "head_": {"weight": torch.ones(2), "bias": torch.zeros(1)},
        "list_": [1, 2.5, "x", None, True, torch.tensor(7)],
        "big_": 2**53 + 1,
    }
    save_state(tmp_path, state)
    back = load_state(tmp_path)
    assert torch.equal(back["view_"], shared.T)
    assert torch.equal(back["alias_"], shared)
    assert torch.equal(back["row_"], shared[1])
    assert back["empty_"].shape == (0, 4)
    assert back["empty_"].dtype == torch.float64
    assert torch.equal(back["head_"]["weight"], torch.ones(2))
    assert back["list_"][:5] == [1, 2.5, "x", None, True]
    assert back["list_"][5].item() == 7
    assert back["big_"] == 2**53 + 1


def test_no_pickle_is_written(tmp_path: Path) -> None:
    save_state(tmp_path, {"a_": torch.zeros(2)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.json", "state.safetensors"]


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"model_": {"layer": object()}}, "model_.layer"),
        ({"set_": {1: torch.zeros(1)}}, "1"),
        ({"set_": {1, 2}}, "set"),
        ({"ridges_": [1.0, float("nan")]}, r"ridges_\.1 must be a finite number, but got nan"),
        ({"scale_": float("-inf")}, "scale_ must be a finite number, but got -inf"),
    ],
)
def test_what_cannot_be_kept_is_named(tmp_path: Path, state: dict, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        save_state(tmp_path, state)


def test_damage_is_noticed(tmp_path: Path) -> None:
    save_state(tmp_path, {"a_": torch.zeros(100)})
    file = tmp_path / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"state\.json and state\.safetensors must be complete and unchanged"):
        load_state(tmp_path)


@pytest.mark.parametrize("change", ['"classes_": [3, 70]', '"classes_": [70]', '"more_": 0, "classes_": [70, 3]'])
def test_a_plain_value_changed_on_disk_is_noticed(change: str, tmp_path: Path) -> None:
    save_state(tmp_path, {"classes_": [70, 3], "rate_": 0.1, "text_": "ä", "a_": torch.zeros(2)})
    assert load_state(tmp_path)["rate_"] == 0.1
    text = (tmp_path / "state.json").read_text()
    (tmp_path / "state.json").write_text(text.replace('"classes_": [70, 3]', change))
    with pytest.raises(CheckpointError, match=f"unchanged, but got '{tmp_path}'. Remove this folder: the run resumes"):
        load_state(tmp_path)
    about = json.loads(text)
    for key in ("checksum", "state"):
        (tmp_path / "state.json").write_text(json.dumps({k: v for k, v in about.items() if k != key}))
        with pytest.raises(CheckpointError, match="complete and unchanged"):
            load_state(tmp_path)


def test_a_state_of_the_form_before_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, {"a_": torch.zeros(1)})
    about = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps({**about, "format": 2}))
    with pytest.raises(CheckpointError, match=r"format must be 3, but got 2\. Use the perdure that wrote it"):
        load_state(tmp_path)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_state(tmp_path)
    save_state(tmp_path, {"a_": torch.zeros(1)})
    (tmp_path / "state.safetensors").unlink()
    with pytest.raises(CheckpointError, match="complete"):
        load_state(tmp_path)
    (tmp_path / "state.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(CheckpointError, match="99"):
        load_state(tmp_path)


def test_tensor_bytes_counts_every_tensor() -> None:
    state = {"a_": torch.zeros(3), "b_": {"c": torch.zeros(2, dtype=torch.float64)}, "d_": [torch.zeros(1)], "e_": 5}
    assert tensor_bytes(state) == 12 + 16 + 4
