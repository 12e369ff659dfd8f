from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import pytest

from in_child import in_child
from perdure import tune_allocator
from perdure.train import runtime


def test_peak_memory_is_what_the_system_says() -> None:
    peak = runtime.peak_rss_bytes()
    assert peak is not None
    assert peak > 50e6  # torch alone is larger: bytes, not kilobytes
    status = Path("/proc/self/status")
    if status.exists():
        of_system = int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
        assert peak == pytest.approx(of_system, rel=0.05)
    assert runtime.peak_rss_bytes() > 0.95 * peak  # Linux counts pages per core: its sums are rough, and may fall


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_peak_memory_is_told_without_proc_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peak = runtime.peak_rss_bytes()
    monkeypatch.setattr(runtime, "_STATUS", tmp_path / "status")
    assert runtime.peak_rss_bytes() == pytest.approx(peak, rel=0.2)
    (tmp_path / "status").write_text("Name: python\n")
    assert runtime.peak_rss_bytes() == pytest.approx(peak, rel=0.2)
    (tmp_path / "status").write_text("VmPeak:\t 9 kB\nVmHWM:\t  7 kB\nVmRSS:\t 5 kB\n")
    assert runtime.peak_rss_bytes() == 7 * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a child inherits its parent's peak")
def test_a_child_does_not_inherit_its_parents_peak() -> None:
    child = f"import runpy; print(runpy.run_path({runtime.__file__!r})['peak_rss_bytes']())"
    parent = f"import subprocess, sys; b = b'x' * (1 << 30); subprocess.run([sys.executable, '-c', {child!r}])"
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) < 1 << 30


def test_peak_memory_on_macos_is_told_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    linux = runtime.peak_rss_bytes()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert runtime.peak_rss_bytes() * 1000 < linux * 2


def test_windows_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert runtime.peak_rss_bytes() is None
    assert runtime.tune_allocator() is False


def test_tuning_the_allocator_in_a_process_of_its_own() -> None:
    def tune() -> None:
        taken = tune_allocator()
        block = bytearray(1 << 26)
        sys.stdout.write(f"{taken} {tune_allocator()} {len(block)}")

    expected = "True" if sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallopt") else "False"
    assert in_child(tune) == (0, f"{expected} {expected} {1 << 26}")


def test_an_allocator_without_mallopt_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert runtime.tune_allocator() is False
