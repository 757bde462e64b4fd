"""The form of a section of the results page, and what figures and tables share.

The `SECTIONS` of an experiment stand in its module, or in NAME_sections.py beside it.
`experiments.report` makes one page of all of them. Only drawing a figure loads
matplotlib (extra `report`): an experiment runs without it. Nothing here loads JAX.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]


# ------------------------------------------------------------------------- figures


def panels(count: int) -> tuple[Figure, Any]:
    """Return a figure, and the axes of its panels, which stand side by side."""
    from matplotlib.figure import Figure

    size = max(3.4 * count, 7), 3.8
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def legend_below(figure: Figure, axes: Iterable[Any], columns: int = 4) -> None:
    """Put one legend for all panels under them, where it hides nothing."""
    handles = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=columns, fontsize=8
    )


# -------------------------------------------------------------------------- tables


def whole(rows: list[Row]) -> list[Row]:
    """Return every column but the origin."""
    hidden = {"experiment", "date", "device", "python", "versions"}
    return [{k: v for k, v in r.items() if k not in hidden} for r in rows]


def columns(rows: Iterable[Row], *names: str) -> list[Row]:
    """Return some columns of the rows that have any of them."""
    return [{n: r.get(n, "") for n in names} for r in rows if set(names) & set(r)]


def mean_and_each(values: Sequence[float]) -> str:
    """Return the mean of some values and, in brackets, each of them."""
    each = ", ".join(f"{value:.1f}" for value in values)
    return f"{statistics.mean(values):.1f} ({each})"


# ------------------------------------------------------------------------- section


class Section(NamedTuple):
    """A part of the page, made of one experiment's rows.

    Attributes:
        title: The heading, which also names the figure's file.
        experiment: The stem of the rows' file.
        command: What makes the rows.
        text: What the rows tell.
        tabulate: `rows -> rows` of the table.
        draw: `rows -> figure`; None for no figure.
    """

    title: str
    experiment: str
    command: str
    text: str
    tabulate: Callable[[list[Row]], list[Row]] = whole
    draw: Callable[[list[Row]], Figure] | None = None
