"""The sections of `experiments.unbiasedness`: bias, variance, error for the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.sections import Row, Section, columns, legend_below, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {
    "with_replacement": "#bbbbbb",
    "uniform": "#4477aa",
    "stratified": "#66ccee",
    "sensitivity": "#228833",
    "stratified_sensitivity": "#ee6677",
    "no factor": "#ccbb44",
    "whole loss × N/H": "#aa3377",
    "N/H, shared subset": "#994455",
    "small task": "#555555",
    "subsample_sum": "#000000",
}
OURS = list(COLORS)[:5]
_TICKS = (1, 2, 5, 10, 20, 40, 80)  # sizes of H


def draw_bias(rows: list[Row]) -> Figure:
    """Draw the bias against H, with what 1000 draws cannot tell from zero."""
    groups = _groups(rows)
    figure, axes = panels(len(groups))
    for axis, (learner, group) in zip(axes, groups, strict=True):
        draws = _trained_draws(rows, learner, group)
        for name, color in COLORS.items():
            curve = [r for r in draws if r["estimator"] == name]
            if not curve:
                continue
            sizes = [r["num_backprop"] for r in curve]
            highest = [
                max(r["bias_squared"] + r["bias_squared_half_width"], 1e-8) ** 0.5
                for r in curve
            ]
            ours = name in OURS
            axis.plot(
                sizes, highest, color=color, marker="." if ours else "s",
                linestyle="--" if ours else "-", markersize=4, label=name,
            )  # fmt: skip
        axis.set(xscale="log", yscale="log", title=f"{learner}: {group}")
        axis.set_ylim(1e-3, 1e3)
        axis.set_xlim(0.8, 125)
        axis.set_xticks(_TICKS, [str(size) for size in _TICKS])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("H, examples back-propagated (of 100)")
    axes[0].set_ylabel("bias / ‖exact gradient‖\n(upper end of 95 % interval)")
    legend_below(figure, axes)
    return figure


def draw_deviation(rows: list[Row]) -> Figure:
    """Draw the error of one draw and of a step of 16 against the work."""
    groups = _groups(rows)
    figure, axes = panels(len(groups))
    for axis, (learner, group) in zip(axes, groups, strict=True):
        draws = _trained_draws(rows, learner, group)
        for name, color in COLORS.items():
            curve = [r for r in draws if r["estimator"] == name and r["rmse_of_16"] > 0]
            if not curve:
                continue
            passes = [r["passes"] for r in curve]
            errors = [r["rmse_of_16"] for r in curve]
            axis.plot(passes, errors, color=color, marker=".", label=name)
        axis.set(yscale="log", title=f"{learner}: {group}")
        axis.set_ylim(1e-3, 1e3)
        axis.set_xlim(130, 570)
        axis.set_xlabel("image passes a task (exact: 550)")
    axes[0].set_ylabel("RMSE of a step of 16 draws /\n‖exact gradient‖")
    legend_below(figure, axes)
    return figure


def _groups(rows: list[Row]) -> list[tuple[str, str]]:
    return sorted({(r["learner"], r["group"]) for r in rows if r["part"] == "draws"})


def _trained_draws(rows: list[Row], learner: str, group: str) -> list[Row]:
    wanted = ("draws", "trained", learner, group)
    names = ("part", "state", "learner", "group")
    return [r for r in rows if tuple(r.get(name) for name in names) == wanted]


def tabulate_enumeration(rows: list[Row]) -> list[Row]:
    """Return the errors of enumerated means."""
    means = [r for r in rows if r["part"] == "enumeration"]
    return columns(means, "learner", "estimator", "relative_bias")


def tabulate_draws(rows: list[Row]) -> list[Row]:
    """Return bias and deviation at H = 20, after training."""
    draws = [
        r
        for r in rows
        if r["part"] == "draws" and (r["state"], r["num_backprop"]) == ("trained", 20)
    ]
    errors = ("bias", "bias_squared", "bias_squared_half_width", "sd", "rmse_of_16")
    return columns(draws, "learner", "group", "estimator", *errors, "cosine", "passes")


def tabulate_variance(rows: list[Row]) -> list[Row]:
    """Return variances relative to the paper's draw."""
    rules = [r for r in rows if r["part"] == "variance"]
    shares = ("relative_variance", "least", "most")
    return columns(rules, "state", "estimator", "num_support", "num_backprop", *shares)


_COMMAND = "python -m experiments.unbiasedness"
_ON_OMNIGLOT = f"{_COMMAND} --dataset=omniglot --root=OMNIGLOT"
SECTIONS = (
    Section(
        "Unbiased: enumerated",
        "unbiasedness",
        _COMMAND,
        "The mean over all draws (H = 2 of N = 6, float64) against the exact gradient. "
        "A subset that two sums share biases it.",
        tabulate_enumeration,
    ),
    Section(
        "Bias",
        "unbiasedness",
        _ON_OMNIGLOT,
        "One 10-way 10-shot task, after training. Dashed: lite_sum under its sampling "
        "rules, whose true bias is 0; their curves are what 1000 draws can exclude.",
        tabulate_draws,
        draw_bias,
    ),
    Section(
        "Variance of the sampling rules",
        "unbiasedness",
        _ON_OMNIGLOT,
        "20-way 10-shot ProtoNets, relative to the paper's draw with replacement: the "
        "mean, least and most of four tasks.",
        tabulate_variance,
    ),
    Section(
        "Error for the work",
        "unbiasedness",
        _ON_OMNIGLOT,
        "The same draws, averaged over a step of 16, against the images passed through "
        "the network (a backward pass counts two).",
        lambda rows: [],
        draw_deviation,
    ),
)
