"""The report's figures: inline SVG whose colours are the page's CSS variables, so that they follow its dark mode.

matplotlib knows no CSS variables. The figures are drawn in stand-in colours, which are then replaced by name.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import FixedLocator, Locator, MaxNLocator
from matplotlib.transforms import ScaledTranslation

RUN_COLORS = 8
"""The page defines ``--run-0`` to ``--run-7``."""
SYMBOLS = "●■▲◆▼★✚"
"""One per run, with the colours: a reader who sees no colours can tell 56 runs apart."""
MAX_PRINTED = 20

_MARKERS = {"o": 5, "s": 4.5, "^": 5.5, "D": 4.5, "v": 5.5, "*": 8, "P": 6}  # points, about one area
_NAMES = ("paper", "ink", "muted", "rule", "accent", "on-accent", *(f"run-{i}" for i in range(RUN_COLORS)))
_STAND_IN = {name: f"#ab00{i:02x}" for i, name in enumerate(_NAMES)}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, and set in the page's font
    "svg.hashsalt": "perdure",
    "font.size": 9,
    "figure.constrained_layout.w_pad": 0.1,  # room for labels in a font wider than matplotlib's
    "text.color": _STAND_IN["ink"],
    "axes.labelcolor": _STAND_IN["muted"],
    "axes.edgecolor": _STAND_IN["rule"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _STAND_IN["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": _STAND_IN["rule"],
    "ytick.color": _STAND_IN["rule"],
    "xtick.labelcolor": _STAND_IN["muted"],
    "ytick.labelcolor": _STAND_IN["muted"],
}

Fractions = Sequence[float | None]


def accuracy_curves(curves: Sequence[Fractions], label: str) -> Markup:
    """One line per run: accuracy over the tasks, its marks beside the other runs' so that none covers another.

    Args:
        curves: per run, accuracy after each task; gaps where it is not defined.
        label: what a screen reader says.

    Returns:
        An ``svg`` element.
    """
    with style.context(["default", _STYLE]):
        figure, axes = _figure(6.0, 3.0)
        runs, n = len(curves), max(map(len, curves))
        # of few tasks the runs' marks stand side by side; of many, on tasks in turn
        apart = min(6, 260 / n / runs) if n <= MAX_PRINTED else 0
        step = int(np.ceil(n / 65))
        for i, curve in enumerate(curves):
            aside = ScaledTranslation(apart * (i - (runs - 1) / 2) / 72, 0, figure.dpi_scale_trans)
            marker, size = list(_MARKERS.items())[i % len(_MARKERS)]
            x, y, color = np.arange(1, len(curve) + 1), _percent(curve), _STAND_IN[f"run-{i % RUN_COLORS}"]
            axes.plot(x, y, color=color, linewidth=1.4, transform=axes.transData + aside, clip_on=False)
            axes.plot(
                x, y, color=color, linestyle="none", marker=marker, markersize=size, zorder=3,
                markeredgecolor=_STAND_IN["paper"], markeredgewidth=0.4, transform=axes.transData + aside,
                markevery=1 if apart else (step * i % len(curve), step * runs), clip_on=False,
            )  # fmt: skip
        axes.set_xlabel("after task")
        axes.set_ylabel("accuracy so far (%)")
        _whole_numbers(axes, n)
        known = [v for curve in curves for v in _percent(curve) if np.isfinite(v)]
        axes.set_ylim(max(0, np.floor(min(known, default=1) / 5 - 0.2) * 5), 100)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
        axes.grid(axis="y")
        return _svg(figure, label)


def task_matrix(matrix: Sequence[Fractions], label: str) -> Markup:
    """The accuracy matrix as a heat map; the weakest cell is palest. Values are printed up to 20 tasks.

    Args:
        matrix: row: after which task; column: on which task's test.
        label: what a screen reader says.

    Returns:
        An ``svg`` element.
    """
    lower = [row[: k + 1] for k, row in enumerate(matrix)]
    return _heat_map(lower, matrix_range(matrix), 1, ("accuracy (%) on the test of task", "after task"), label)


def share_map(shares: Sequence[Fractions], label: str) -> Markup:
    """Which prompts the tests choose, as a heat map from 0 (palest) to the largest share.

    Args:
        shares: row: test of which task; column: which prompt.
        label: what a screen reader says.

    Returns:
        An ``svg`` element.
    """
    return _heat_map(shares, (0.0, matrix_range(shares)[1]), 0, ("share (%) of prompt", "test of task"), label)


def matrix_range(matrix: Sequence[Fractions]) -> tuple[float, float]:
    """The lowest and the highest value; 0 and 1 if there is none."""
    known = [v for row in matrix for v in row if v is not None]
    return min(known, default=0.0), max(known, default=1.0)


def class_bars(accuracies: Sequence[float], label: str) -> Markup:
    """One bar per class, weakest first; readable for any number of classes.

    Args:
        accuracies: of each class, in any order.
        label: what a screen reader says.

    Returns:
        An ``svg`` element.
    """
    ordered, n = sorted(accuracies), len(accuracies)
    gap = 0.15 if n <= 150 else 0.0
    boxes = [(i + 0.5 + gap / 2, 0.0, 1 - gap, 100 * a) for i, a in enumerate(ordered)]
    with style.context(["default", _STYLE]):
        figure, axes = _figure(6.0, 2.1)
        axes.set_axisbelow(True)
        axes.grid(axis="y")
        axes.add_patch(_boxes(boxes, "accent", 0.85))
        axes.set_xlabel("classes, weakest first", loc="left")
        axes.set_ylabel("accuracy (%)")
        _whole_numbers(axes, n, room=12)
        axes.set_ylim(0, 100)
        return _svg(figure, label)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _heat_map(
    rows: Sequence[Fractions], span: tuple[float, float], digits: int, names: tuple[str, str], label: str
) -> Markup:
    (lowest, highest), n, n_columns = span, len(rows), max(map(len, rows))
    cells, texts = defaultdict(list), []
    for k, row in enumerate(rows):
        for j, value in enumerate(row):
            share = 0.0 if value is None else (value - lowest) / (highest - lowest) if highest > lowest else 1.0
            # Steps of 1/20 keep the file small: one path for all cells of a step.
            opacity = 0.0 if value is None else round(0.06 + 0.84 * round(share * 20) / 20, 3)
            cells[opacity].append((j + 0.53, k + 0.53, 0.94, 0.94))
            color = "on-accent" if opacity > 0.62 else "ink"
            texts.append((j + 1, k + 1, "–" if value is None else f"{100 * value:.{digits}f}", color))
    with style.context(["default", _STYLE]):
        figure, axes = _figure(6.0, min(4.4, 0.9 + 0.4 * n))
        for opacity, boxes in sorted(cells.items()):
            axes.add_patch(_boxes(boxes, "accent", opacity))
        if max(n, n_columns) <= MAX_PRINTED:
            for x, y, text, color in texts:
                size = 8 if max(n, n_columns) <= 12 else 5.5
                axes.text(x, y, text, color=_STAND_IN[color], fontsize=size, ha="center", va="center_baseline")
        axes.set_xlabel(names[0], loc="left")
        axes.set_ylabel(names[1])
        _whole_numbers(axes, n_columns, room=6)
        axes.yaxis.set_major_locator(_locator(n))
        axes.set_ylim(n + 0.5, 0.5)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        return _svg(figure, label)


def _percent(values: Fractions) -> np.ndarray:
    return np.array([np.nan if v is None else 100 * v for v in values])


def _whole_numbers(axes: Axes, n: int, room: int = 1) -> None:
    """An axis of 1 to n, with room for more so that a few cells or bars do not become huge."""
    axes.set_xlim(0.5, max(n, room) + 0.5)
    axes.xaxis.set_major_locator(_locator(n))


def _locator(n: int) -> Locator:
    return FixedLocator(range(1, n + 1)) if n <= MAX_PRINTED else MaxNLocator(12, steps=[1, 2, 5, 10])


def _boxes(boxes: Sequence[tuple[float, float, float, float]], color: str, opacity: float) -> PathPatch:
    """Rectangles (left, bottom, width, height) as one path: a thousand of them stay a small file."""
    outlines = [Outline([(x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y)], closed=True) for x, y, w, h in boxes]
    outline = Outline.make_compound_path(*outlines)
    return PathPatch(outline, facecolor=_STAND_IN[color], edgecolor="none", alpha=opacity, clip_on=False)


def _svg(figure: Figure, label: str) -> Markup:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]  # without the XML declaration and document type, which HTML does not take
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;]*; ", "", text)  # the page's own
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # several figures share a page, where an id must be unique
    for name, color in _STAND_IN.items():
        text = text.replace(color, f"var(--{name})")
    head = f'<svg role="img" aria-label="{escape(label)}"'
    return Markup(text.replace("<svg", head, 1))
