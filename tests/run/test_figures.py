"""What is drawn is what was measured, and no run hides another."""

from __future__ import annotations

import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch

from perdure.run import figures
from perdure.run.figures import RUN_COLORS, SYMBOLS, accuracy_curves, class_bars, share_map, task_matrix


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The matplotlib figures behind the SVGs made so far."""
    kept: list[Figure] = []
    svg = figures._svg
    monkeypatch.setattr(figures, "_svg", lambda figure, label: [kept.append(figure), svg(figure, label)][1])
    return kept


def lines_and_marks(figure: Figure) -> tuple[list[Line2D], list[Line2D]]:
    lines = figure.axes[0].lines
    return [line for line in lines if line.get_linestyle() == "-"], [m for m in lines if m.get_linestyle() == "None"]


def boxes(figure: Figure) -> list[tuple[float, tuple[float, ...]]]:
    """Of each rectangle its opacity and (left, bottom, width, height)."""
    found = []
    for patch in figure.axes[0].patches:
        assert isinstance(patch, PathPatch)
        for corners in patch.get_path().vertices.reshape(-1, 5, 2):
            low, high = corners.min(0), corners.max(0)
            found.append((patch.get_alpha(), tuple(np.round([*low, *(high - low)], 6).tolist())))
    return found


def names(figure: Figure) -> tuple[str, str]:
    return figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()


def printed(figure: Figure) -> dict[tuple[float, float], str]:
    return {text.get_position(): text.get_text() for text in figure.axes[0].texts}


def test_curves_are_the_accuracies(drawn: list[Figure]) -> None:
    curves = [[1.0, 0.625, 0.75], [0.25, None], [None, None, 0.5]]
    accuracy_curves(curves, "")
    lines, marks = lines_and_marks(drawn[0])
    for shown in (lines, marks):
        assert len(shown) == 3
        for line, curve in zip(shown, curves, strict=True):
            assert line.get_xdata().tolist() == list(range(1, len(curve) + 1))
            np.testing.assert_array_equal(line.get_ydata(), [np.nan if v is None else 100 * v for v in curve])
    low, high = drawn[0].axes[0].get_ylim()
    assert low <= 25 < 100 == high
    assert drawn[0].axes[0].get_xlim() == (0.5, 3.5)
    assert names(drawn[0]) == ("after task", "accuracy so far (%)")


def test_runs_have_the_colours_and_symbols_of_the_legend(drawn: list[Figure]) -> None:
    accuracy_curves([[0.5, 0.4]] * 9, "")
    like = dict(zip("●■▲◆▼★✚", "os^Dv*P", strict=True))
    for shown in lines_and_marks(drawn[0]):
        assert [s.get_color() for s in shown] == [figures._STAND_IN[f"run-{i % RUN_COLORS}"] for i in range(9)]
    assert [m.get_marker() for m in lines_and_marks(drawn[0])[1]] == [like[SYMBOLS[i % len(SYMBOLS)]] for i in range(9)]


@pytest.mark.parametrize(("runs", "tasks"), [(2, 1), (2, 5), (6, 10), (8, 20), (2, 21), (15, 60), (3, 300)])
def test_no_run_hides_an_equal_one(drawn: list[Figure], runs: int, tasks: int) -> None:
    accuracy_curves([[0.5] * tasks] * runs, "")
    lines, marks = lines_and_marks(drawn[0])
    assert all(mark.get_zorder() > max(line.get_zorder() for line in lines) for mark in marks), "marks are on top"
    slot = np.diff(drawn[0].axes[0].transData.transform([[0, 0], [1, 0]])[:, 0])[0]
    centres = []
    for mark in marks:
        start, step = (0, 1) if mark.get_markevery() == 1 else mark.get_markevery()
        places = mark.get_transform().transform(np.c_[mark.get_xdata(), mark.get_ydata()])[start::step, 0]
        away = places - drawn[0].axes[0].transData.transform(np.c_[mark.get_xdata(), mark.get_ydata()])[start::step, 0]
        assert len(places)
        assert abs(away).max() < slot / 2, "each stays with its task"
        centres.append(places * 72 / drawn[0].dpi)
    apart = min(abs(a - b) for i, one in enumerate(centres) for other in centres[:i] for a in one for b in other)
    assert apart >= 1.6, "points: enough of each 5 point mark is to be seen"


def test_a_figures_styles_are_whole_declarations(drawn: list[Figure]) -> None:
    styles = re.findall(r'style="([^"]*)"', share_map([[0.5, 0.5]], "label"))
    assert styles
    for style in styles:
        for declaration in filter(None, map(str.strip, style.split(";"))):
            assert re.fullmatch(r"[a-z-]+: ?[^:]+", declaration)
    assert not any("font-family" in style for style in styles)


def test_a_single_run_stands_on_its_tasks(drawn: list[Figure]) -> None:
    accuracy_curves([[0.5, 0.75]], "")
    (line,), (mark,) = lines_and_marks(drawn[0])
    axes = drawn[0].axes[0]
    where = axes.transData.transform([[1, 50], [2, 75]])
    for shown in (line, mark):
        np.testing.assert_allclose(shown.get_transform().transform(np.c_[[1, 2], [50, 75]]), where)


def test_the_matrix_prints_each_value_in_its_cell_and_shades_it(drawn: list[Figure]) -> None:
    task_matrix([[1.0, None, None], [0.5, 0.25, 0.9], [0.75, None, 0.625]], "")
    values = {(1, 1): "100.0", (1, 2): "50.0", (2, 2): "25.0", (1, 3): "75.0", (2, 3): "–", (3, 3): "62.5"}
    assert printed(drawn[0]) == values, "column, row; nothing above the diagonal"
    shade = {(box[0] - 0.03 + 0.5, box[1] - 0.03 + 0.5): opacity for opacity, box in boxes(drawn[0])}
    shade = {(round(x), round(y)): opacity for (x, y), opacity in shade.items()}
    assert shade.keys() == values.keys()
    # from 0.06 at the lowest of all values, 25, to 0.9 at the highest, 100; none where there is none
    assert shade == pytest.approx({(1, 1): 0.9, (1, 2): 0.354, (2, 2): 0.06, (1, 3): 0.606, (2, 3): 0, (3, 3): 0.48})
    assert all(box[2:] == (0.94, 0.94) for _, box in boxes(drawn[0]))
    assert drawn[0].axes[0].get_ylim() == (3.5, 0.5), "the first row is on top"
    assert names(drawn[0]) == ("accuracy (%) on the test of task", "after task")


def test_shares_are_whole_percents_shaded_from_zero(drawn: list[Figure]) -> None:
    share_map([[0.5, 0.25, 0.25], [0.2, 0.8, None]], "")
    assert printed(drawn[0]) == {(1, 1): "50", (2, 1): "25", (3, 1): "25", (1, 2): "20", (2, 2): "80", (3, 2): "–"}
    # in steps of a twentieth of the highest, 80, and not from the lowest, 20
    assert sorted({o for o, _ in boxes(drawn[0])}) == pytest.approx([0, 0.27, 0.312, 0.564, 0.9], abs=1e-3)
    assert names(drawn[0]) == ("share (%) of prompt", "test of task")


@pytest.mark.parametrize(("n", "width"), [(4, 0.85), (150, 0.85), (151, 1.0)])
def test_bars_are_as_high_as_the_accuracies_and_equally_wide(drawn: list[Figure], n: int, width: float) -> None:
    accuracies = np.random.default_rng(0).permutation(np.linspace(0.1, 0.95, n))
    class_bars(accuracies.tolist(), "")
    bars = [box for _, box in boxes(drawn[0])]
    assert [bar[3] for bar in bars] == pytest.approx((100 * np.sort(accuracies)).tolist(), abs=1e-5)
    assert [bar[2] for bar in bars] == pytest.approx([width] * n)
    assert [bar[0] + bar[2] / 2 for bar in bars] == pytest.approx(list(range(1, n + 1)))
    assert {bar[1] for bar in bars} == {0.0}
    assert drawn[0].axes[0].get_ylim() == (0, 100)
    assert names(drawn[0]) == ("classes, weakest first", "accuracy (%)")
