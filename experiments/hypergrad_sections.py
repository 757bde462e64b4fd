"""The sections of `experiments.hypergrad`: errors, and cost and use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.sections import Row, Section, columns, legend_below, panels, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAMILIES = {"CG": "#4477aa", "Neumann": "#228833", "unrolled": "#ee6677"}


def draw_errors(rows: list[Row]) -> Figure:
    """Draw the error of hypergradients against the products they took."""
    errors = [r for r in rows if r["part"] == "error"]
    problems = list(dict.fromkeys(r["problem"] for r in errors))[2:]  # two are easy
    figure, axes = panels(len(problems))
    for axis, problem in zip(axes, problems, strict=True):
        for family, color in FAMILIES.items():
            points = [
                (int(r["estimator"].split()[1]), max(r["relative_error"], 1e-6))
                for r in errors
                if r["problem"] == problem
                and r["estimator"].split()[0] == family
                and "damping" not in r["estimator"]
            ]
            line = "o-" if family != "unrolled" else "x--"
            axis.plot(*zip(*points, strict=True), line, color=color, label=family)
        (identity,) = [
            r["relative_error"]
            for r in errors
            if r["problem"] == problem and r["estimator"].startswith("identity")
        ]
        axis.axhline(identity, color="#888888", linestyle=":", label="identity")
        axis.set(xscale="log", yscale="log", title=problem, ylim=(5e-7, 3))
        axis.set_xlabel("Hessian products, or steps")
    axes[0].set_ylabel("relative error of the hypergradient")
    legend_below(figure, axes)
    return figure


def tabulate_errors(rows: list[Row]) -> list[Row]:
    """Return the errors on digits."""
    digits = [r for r in rows if r["part"] == "error" and "digits" in r["problem"]]
    return columns(digits, "problem", "estimator", "cosine", "relative_error")


SECTIONS = (
    Section(
        "Hypergradients",
        "hypergrad",
        "python -m experiments.hypergrad",
        "Against exact gradients in float64; points below 1e-6 are drawn there.",
        tabulate_errors,
        draw_errors,
    ),
    Section(
        "Hypergradients: cost and use",
        "hypergrad",
        "python -m experiments.hypergrad",
        "Memory and time of one hypergradient, mixed products, hyper-cleaning of "
        "digits and few-shot learning.",
        lambda rows: whole([r for r in rows if r["part"] != "error"]),
    ),
)
