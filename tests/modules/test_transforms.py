from __future__ import annotations

import pytest
import torch

from perdure.errors import DataError
from perdure.modules.transforms import Raw, Tukey, Unit


def test_each_kind_by_hand() -> None:
    x = torch.tensor([[9.0, 16.0]])
    for transform, expected in ((Unit(), [[9 / 337**0.5, 16 / 337**0.5]]), (Raw(), [[9, 16]]), (Tukey(), [[3, 4]])):
        found = transform.of(x)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(Tukey(power=0.25).of(x)[0, 1], torch.tensor(2.0, dtype=torch.float64))
    with pytest.raises(DataError, match=r"but got -9\.0"):
        Tukey().of(-x[:, :1])
