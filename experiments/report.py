"""One page with every result: figures and tables from the rows, and their origin.

    pip install -e '.[report]'
    python -m experiments.report [--results=experiments/results] [--out=report.html]

Reads the rows that experiments left and writes one HTML file that needs nothing else,
with the figures inside; `--figures=FOLDER` writes them as PNG files too. Sections
without rows say so.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from experiments.rows import read_rows  # noqa: E402

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
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


class Section(NamedTuple):
    """A part of the page: a figure and a table from one experiment's rows."""

    title: str
    experiment: str
    command: str
    text: str
    draw: Callable[[list[Row]], Figure] | None
    tabulate: Callable[[list[Row]], list[Row]]


# ------------------------------------------------------------------------- figures


def _panels(count: int) -> tuple[Figure, Any]:
    figure, axes = plt.subplots(
        1, count, figsize=(max(3.4 * count, 7), 3.8), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    return figure, axes[0]


def _legend_below(figure: Figure, axes: Any, columns: int = 4) -> None:
    """Put one legend for all panels under them, where it hides nothing."""
    found = dict(
        pair[::-1]
        for axis in axes
        for pair in zip(*axis.get_legend_handles_labels(), strict=True)
    )
    figure.legend(
        found.values(), found, loc="outside lower center", ncols=columns, fontsize=8
    )


def _groups(rows: list[Row]) -> list[tuple[str, str]]:
    return sorted({(r["learner"], r["group"]) for r in rows if r["part"] == "draws"})


def _trained_draws(rows: list[Row], learner: str, group: str) -> list[Row]:
    wanted = ("draws", "trained", learner, group)
    names = ("part", "state", "learner", "group")
    return [r for r in rows if tuple(r.get(name) for name in names) == wanted]


_TICKS = (1, 2, 5, 10, 20, 40, 80)  # sizes of H


def draw_bias(rows: list[Row]) -> Figure:
    """Draw the bias against H, with what 1000 draws cannot tell from zero."""
    groups = _groups(rows)
    figure, axes = _panels(len(groups))
    for axis, (learner, group) in zip(axes, groups, strict=True):
        own = _trained_draws(rows, learner, group)
        for name, color in COLORS.items():
            found = [r for r in own if r["estimator"] == name]
            if not found:
                continue
            sizes = [r["num_backprop"] for r in found]
            highest = [
                max(r["bias_squared"] + r["bias_squared_half_width"], 1e-8) ** 0.5
                for r in found
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
    _legend_below(figure, axes)
    return figure


def draw_deviation(rows: list[Row]) -> Figure:
    """Draw the error of one draw and of a step of 16 against the work."""
    groups = _groups(rows)
    figure, axes = _panels(len(groups))
    for axis, (learner, group) in zip(axes, groups, strict=True):
        own = _trained_draws(rows, learner, group)
        for name, color in COLORS.items():
            found = [r for r in own if r["estimator"] == name and r["rmse_of_16"] > 0]
            if not found:
                continue
            passes = [r["passes"] for r in found]
            errors = [r["rmse_of_16"] for r in found]
            axis.plot(passes, errors, color=color, marker=".", label=name)
        axis.set(yscale="log", title=f"{learner}: {group}")
        axis.set_ylim(1e-3, 1e3)
        axis.set_xlim(130, 570)
        axis.set_xlabel("image passes a task (exact: 550)")
    axes[0].set_ylabel("RMSE of a step of 16 draws /\n‖exact gradient‖")
    _legend_below(figure, axes)
    return figure


def draw_hypergrad(rows: list[Row]) -> Figure:
    """Draw the error of hypergradients against the products they took."""
    own = [r for r in rows if r["part"] == "error"]
    problems = list(dict.fromkeys(r["problem"] for r in own))[2:]  # two are easy
    figure, axes = _panels(len(problems))
    families = {"CG": "#4477aa", "Neumann": "#228833", "unrolled": "#ee6677"}
    for axis, problem in zip(axes, problems, strict=True):
        for family, color in families.items():
            points = [
                (int(r["estimator"].split()[1]), max(r["relative_error"], 1e-6))
                for r in own
                if r["problem"] == problem
                and r["estimator"].split()[0] == family
                and "damping" not in r["estimator"]
            ]
            line = "o-" if family != "unrolled" else "x--"
            axis.plot(*zip(*points, strict=True), line, color=color, label=family)
        (identity,) = [
            r["relative_error"]
            for r in own
            if r["problem"] == problem and r["estimator"].startswith("identity")
        ]
        axis.axhline(identity, color="#888888", linestyle=":", label="identity")
        axis.set(xscale="log", yscale="log", title=problem, ylim=(5e-7, 3))
        axis.set_xlabel("Hessian products, or steps")
    axes[0].set_ylabel("relative error of the hypergradient")
    _legend_below(figure, axes)
    return figure


def draw_memory(rows: list[Row]) -> Figure:
    """Draw memory against the number of support images."""
    titles = {"compiled": "as compiled: temporaries", "measured": "as run: added peak"}
    titles = {k: v for k, v in titles.items() if any(r["part"] == k for r in rows)}
    figure, axes = _panels(len(titles))
    for axis, (part, title) in zip(axes, titles.items(), strict=True):
        own = [
            r
            for r in rows
            if r.get("part") == part
            and (r["size"], r["num_backprop"], r["chunk_size"]) == (84, 16, 16)
        ]
        for name, marker in zip(
            dict.fromkeys(r["operator"] for r in own), "osxD^", strict=False
        ):
            found = [r for r in own if r["operator"] == name]
            axis.plot(
                [r["num_support"] for r in found], [r["mib"] for r in found],
                marker=marker, markersize=5, fillstyle="none", alpha=0.8, label=name,
            )  # fmt: skip
        axis.set(xscale="log", yscale="log", title=title)
        axis.set_xlabel("support images N (84 px, H = 16)")
    axes[0].set_ylabel("MiB")
    _legend_below(figure, axes, 3)
    return figure


def draw_accuracy(rows: list[Row]) -> Figure:
    """Draw each method's accuracy, a dot a seed; after equal time if there is any."""
    rows = [r for r in rows if r["equal"] == "time"] or rows
    kinds = {"w20s1": "20-way 1-shot", "w5s1": "5-way 1-shot", "w5s5": "5-way 5-shot"}
    panels = list(
        dict.fromkeys((r["dataset"], k) for r in rows for k in kinds if k in r)
    )
    figure, axes = _panels(len(panels))
    names = list(dict.fromkeys(r["method"] for r in rows))[::-1]
    for axis, (dataset, kind) in zip(axes, panels, strict=True):
        own = [r for r in rows if r["dataset"] == dataset and kind in r]
        for place, name in enumerate(names):
            found = [100 * r[kind] for r in own if r["method"] == name]
            axis.plot(found, [place] * len(found), "o", color="#4477aa", alpha=0.5)
            axis.plot([statistics.mean(found)], [place], "|", color="k", markersize=14)
        data = {"folder": "Caltech101"}.get(dataset, dataset.capitalize())
        axis.set(title=f"{data}\n{kinds[kind]}", xlabel="accuracy, %")
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [])
    return figure


def draw_returns(rows: list[Row]) -> Figure:
    """Draw returns in meta-training, a panel an environment."""
    environments = list(dict.fromkeys(row["environment"] for row in rows))
    figure, axes = _panels(len(environments))
    for axis, environment in zip(axes, environments, strict=True):
        for row in rows:
            if row["environment"] == environment:
                parts = len(row["curve"])
                ends = [row["steps"] * (i + 1) / parts for i in range(parts)]
                axis.plot(ends, row["curve"], label=row["method"])
        axis.set(title=environment, xlabel="meta-training steps", ylabel="return")
    _legend_below(figure, axes)
    return figure


def draw_soak(rows: list[Row]) -> Figure:
    """Draw memory, and what else could grow, against steps."""
    figure, axes = _panels(2)
    steps = [row["step"] for row in rows]
    axes[0].plot(steps, [row["resident_mb"] for row in rows])
    axes[0].set(title="resident memory, MB", xlabel="steps", ylim=(0, None))
    for name in ("programs", "open_files", "threads"):
        axes[1].plot(steps, [row[name] for row in rows], label=name.replace("_", " "))
    axes[1].set(title="numbers of", xlabel="steps", ylim=(0, None))
    axes[1].legend()
    return figure


def draw_benchmark(rows: list[Row]) -> Figure:
    """Draw seconds of a step as bars, a panel for each task and network."""
    cases = list(
        dict.fromkeys((r["learner"], r["backbone"], r["num_support"]) for r in rows)
    )
    methods = list(dict.fromkeys(r["method"] for r in rows))[::-1]
    figure, axes = _panels(len(cases))
    for axis, case in zip(axes, cases, strict=True):
        own = {
            r["method"]: r["seconds"]
            for r in rows
            if (r["learner"], r["backbone"], r["num_support"]) == case
        }
        places = [i for i, name in enumerate(methods) if name in own]
        colors = ["#4477aa" if methods[i] == "lite" else "#bbbbbb" for i in places]
        axis.barh(places, [own[methods[i]] for i in places], color=colors)
        axis.set(title=f"{case[0]}, N = {case[2]}\n{case[1]}", xlabel="seconds a step")
        axis.set_yticks(range(len(methods)), methods if axis is axes[0] else [])
    return figure


# -------------------------------------------------------------------------- tables


def columns(rows: Iterable[Row], *names: str) -> list[Row]:
    """Return some columns of the rows that have any of them."""
    return [{n: r.get(n, "") for n in names} for r in rows if set(names) & set(r)]


def tabulate_enumeration(rows: list[Row]) -> list[Row]:
    """Return the errors of enumerated means."""
    found = [r for r in rows if r["part"] == "enumeration"]
    return columns(found, "learner", "estimator", "relative_bias")


def tabulate_draws(rows: list[Row]) -> list[Row]:
    """Return bias and deviation at H = 20, after training."""
    found = [
        r
        for r in rows
        if r["part"] == "draws" and (r["state"], r["num_backprop"]) == ("trained", 20)
    ]
    errors = ("bias", "bias_squared", "bias_squared_half_width", "sd", "rmse_of_16")
    return columns(found, "learner", "group", "estimator", *errors, "cosine", "passes")


def tabulate_variance(rows: list[Row]) -> list[Row]:
    """Return variances relative to the paper's draw."""
    found = [r for r in rows if r["part"] == "variance"]
    shares = ("relative_variance", "least", "most")
    return columns(found, "state", "estimator", "num_support", "num_backprop", *shares)


def tabulate_accuracy(rows: list[Row]) -> list[Row]:
    """Return the mean over seeds, and each seed's."""
    found = []
    cases = dict.fromkeys((r["equal"], r["dataset"], r["method"]) for r in rows)
    for case in cases:
        own = [r for r in rows if (r["equal"], r["dataset"], r["method"]) == case]
        row = dict(zip(("equal", "dataset", "method"), case, strict=True))
        row |= {"seeds": len(own), "steps": own[0]["steps"]}
        for kind in ("w20s1", "w5s1", "w5s5"):
            values = [100 * r[kind] for r in own if kind in r]
            if values:
                row[kind] = f"{statistics.mean(values):.1f} ({_listed(values)})"
        found.append(row)
    return found


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def tabulate_reweighting(rows: list[Row]) -> list[Row]:
    """Return the mean accuracy over seeds, and each seed's, in %."""
    own = [r for r in rows if r["part"] == "reweight" and "mean" in r]
    return _over_seeds(own, "mean", "dataset", "method", "learner")


def tabulate_pruning(rows: list[Row]) -> list[Row]:
    """Return the mean accuracy over networks, and each one's, in %."""
    own = [r for r in rows if r["part"] == "prune"]
    return _over_seeds(own, "accuracy", "labels", "rule", "keep")


def _over_seeds(rows: list[Row], value: str, *names: str) -> list[Row]:
    cases: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        cases.setdefault(tuple(row[n] for n in names), []).append(100 * row[value])
    return [
        dict(zip(names, case, strict=True))
        | {"accuracy, %": f"{statistics.mean(found):.1f} ({_listed(found)})"}
        for case, found in cases.items()
    ]


def tabulate_plans(rows: list[Row]) -> list[Row]:
    """Return bytes and operations of adaptation plans, empty where not counted."""
    names = (
        "network", "layers", "kept", "paper_mb", "stored_mb", "residual_mb",
        "temporary_mb", "step_mb", "mmacs",
    )  # fmt: skip
    return [{name: row.get(name, "") for name in names} for row in rows]


def whole(rows: list[Row]) -> list[Row]:
    """Return every column but the origin."""
    hidden = {"experiment", "date", "device", "python", "versions"}
    return [{k: v for k, v in r.items() if k not in hidden} for r in rows]


_PMETA = ("part", "dataset", "shot", "steps", "seed", "penalty", "penalty_on")
SECTIONS = (
    Section(
        "Unbiased: enumerated",
        "unbiasedness",
        "python -m experiments.unbiasedness",
        "The mean over all draws (H = 2 of N = 6, float64) against the exact gradient. "
        "A subset that two sums share biases it.",
        None,
        tabulate_enumeration,
    ),
    Section(
        "Bias",
        "unbiasedness",
        "python -m experiments.unbiasedness --dataset=omniglot --root=OMNIGLOT",
        "One 10-way 10-shot task, after training. Dashed: lite_sum under its sampling "
        "rules, whose true bias is 0; their curves are what 1000 draws can exclude.",
        draw_bias,
        tabulate_draws,
    ),
    Section(
        "Variance of the sampling rules",
        "unbiasedness",
        "python -m experiments.unbiasedness --dataset=omniglot --root=OMNIGLOT",
        "20-way 10-shot ProtoNets, relative to the paper's draw with replacement: the "
        "mean, least and most of four tasks.",
        None,
        tabulate_variance,
    ),
    Section(
        "Other ways to lower the variance",
        "variance",
        "python -m experiments.variance --dataset=omniglot --root=OMNIGLOT",
        "What was tried and not kept, relative to the paper's draw with replacement of "
        "H = 20. Draws for each query chunk back-propagate what the column says.",
        None,
        lambda rows: columns(
            rows,
            "state",
            "rule",
            "draw",
            "examples_backpropagated",
            "relative_variance",
            "least",
            "most",
        ),
    ),
    Section(
        "Error for the work",
        "unbiasedness",
        "python -m experiments.unbiasedness --dataset=omniglot --root=OMNIGLOT",
        "The same draws, averaged over a step of 16, against the images passed through "
        "the network (a backward pass counts two).",
        draw_deviation,
        lambda rows: [],
    ),
    Section(
        "Memory",
        "memory",
        "python -m benchmarks.memory",
        "One ProtoNets gradient, Conv-4.",
        draw_memory,
        whole,
    ),
    Section(
        "Speed",
        "speed",
        "python -m benchmarks.speed",
        "One gradient beside the floor, (N + 2 H + 3 M) forward passes, and beside "
        "PyTorch; medians of rounds in which every method ran once.",
        draw_benchmark,
        whole,
    ),
    Section(
        "Loops over chunks",
        "loops",
        "python -m benchmarks.loops",
        "The same gradient by each.",
        None,
        whole,
    ),
    Section(
        "Many devices",
        "scaling",
        "python -m benchmarks.scaling",
        "Collectives of a compiled step, as tasks or examples grow with the devices.",
        None,
        whole,
    ),
    Section(
        "Accuracy",
        "accuracy",
        "python -m experiments.accuracy --dataset=omniglot --root=OMNIGLOT",
        "ProtoNets on Omniglot, in the memory of 20 images; a dot a seed, a bar at "
        "their mean.",
        draw_accuracy,
        tabulate_accuracy,
    ),
    Section(
        "Hypergradients",
        "hypergrad",
        "python -m experiments.hypergrad",
        "Against exact gradients in float64; points below 1e-6 are drawn there.",
        draw_hypergrad,
        lambda rows: columns(
            [r for r in rows if r["part"] == "error" and "digits" in r["problem"]],
            "problem",
            "estimator",
            "cosine",
            "relative_error",
        ),
    ),
    Section(
        "Hypergradients: cost and use",
        "hypergrad",
        "python -m experiments.hypergrad",
        "Memory and time of one hypergradient, mixed products, hyper-cleaning of "
        "digits and few-shot learning.",
        None,
        lambda rows: whole([r for r in rows if r["part"] != "error"]),
    ),
    Section(
        "Convergence of MRML",
        "convergence",
        "python -m experiments.convergence",
        "256 regression tasks with a known gradient: over outer steps with all tasks a "
        "step, and by the tasks drawn for a step; a slope of -1 is O(1 / |B|).",
        None,
        whole,
    ),
    Section(
        "Noisy labels",
        "sama",
        "python -m experiments.sama",
        "Test accuracy with 40 % of the training labels wrong: ordinary training, and "
        "weights learned on the clean examples.",
        None,
        tabulate_reweighting,
    ),
    Section(
        "Pruning",
        "sama",
        "python -m experiments.sama",
        "Test accuracy after training on what a rule keeps of 1000 digits.",
        None,
        tabulate_pruning,
    ),
    Section(
        "Memory of adaptation plans",
        "pmeta_memory",
        "python -m benchmarks.pmeta_memory",
        "MB of adapting a network by what is trained and kept, one image at a time "
        "(200 observations of the perceptron): the paper's model, what has to be "
        "stored, what the VJP keeps, the compiled gradient and accumulating step; "
        "millions of multiplications.",
        None,
        tabulate_plans,
    ),
    Section(
        "p-Meta beside other inner rules",
        "pmeta",
        "python -m experiments.pmeta --only=methods",
        "Accuracy of 5-way tasks after adaptation one image at a time; layers trained "
        "at each step; MB and millions of multiplications of an image by the paper's "
        "model, and MB of the compiled step.",
        None,
        lambda rows: columns(
            [r for r in rows if r["part"] == "methods"],
            *_PMETA,
            "method",
            "accuracy",
            "half_width",
            "layers",
            "paper_mb",
            "most_paper_mb",
            "step_mb",
            "mmacs",
        ),
    ),
    Section(
        "What the parts of p-Meta do",
        "pmeta",
        "python -m experiments.pmeta",
        "Sides and ratios of attention, and static step sizes of channels; test "
        "batches; scores that multiply what is passed on; pool and norm under MAML.",
        None,
        lambda rows: columns(
            [r for r in rows if r["part"] != "methods"],
            *_PMETA,
            "forward",
            "backward",
            "channels",
            "batch",
            "sparse",
            "pool",
            "norm",
            "images",
            "accuracy",
            "half_width",
        ),
    ),
    Section(
        "Policies after adaptation",
        "pmeta_rl",
        "python -m experiments.pmeta_rl",
        "Mean return before and after one inner step, over held-out tasks; memory and "
        "operations of one episode by p-Meta's model. Curves: after adaptation, in "
        "meta-training.",
        draw_returns,
        lambda rows: columns(
            rows,
            "environment",
            "method",
            "before",
            "after",
            "after_half_width",
            "trained",
            "paper_mb",
            "mmacs",
        ),
    ),
    Section(
        "Hypergradients of growing networks",
        "sama",
        "python -m experiments.sama",
        "One hypergradient of the weights of 16 texts, by a transformer.",
        None,
        lambda rows: columns(
            [r for r in rows if r["part"] == "scale"],
            "weights",
            "estimator",
            "mib",
            "seconds",
            "examples_per_second",
        ),
    ),
    Section(
        "Loading episodes",
        "loading",
        "python -m benchmarks.loading",
        "Episodes of 350 + 208 images at 224 pixels, from JPEG and from a cache; "
        "memory that loading adds while a slow step consumes them.",
        None,
        whole,
    ),
    Section(
        "Learners",
        "learners",
        "python -m experiments.learners --root=CALTECH101 --weights=WEIGHTS",
        "The same pretrained ResNet-18 and the same 600 test tasks for each.",
        None,
        whole,
    ),
    Section(
        "Cost of adapting",
        "cost",
        "python -m benchmarks.cost",
        "To one 5-way 5-shot task.",
        None,
        whole,
    ),
    Section(
        "Mahalanobis head",
        "mahalanobis",
        "python -m benchmarks.mahalanobis",
        "Loss and gradient against explicit inverses.",
        None,
        whole,
    ),
    Section(
        "A classifier of photographs",
        "adapting",
        "python -m experiments.adapting",
        "Seconds that a person waits, at 84 pixels, decoding included: after one more "
        "photograph until a new classifier stands, and until it answers.",
        None,
        lambda rows: columns(
            rows,
            "learner",
            "classes",
            "photographs",
            "first_adapted",
            "adapted_to_one_more",
            "first_answer",
            "answer",
        ),
    ),
    Section(
        "Killed runs",
        "kills",
        "python -m tests.stress.kills",
        "Runs killed at random moments until they end, against an uninterrupted one: "
        "metrics and backbone byte by byte, parameters and optimiser bit by bit.",
        None,
        lambda rows: columns(
            rows,
            "signal",
            "kills",
            "before_a_checkpoint",
            "while_saving",
            "runs",
            "identical",
        ),
    ),
    Section(
        "A long run",
        "soak",
        "python -m tests.stress.soak",
        "Ten thousand tiny steps in one process, checkpoints and validation included.",
        draw_soak,
        lambda rows: columns(
            rows[:1] + rows[-1:],
            "step",
            "resident_mb",
            "programs",
            "open_files",
            "threads",
        ),
    ),
    Section(
        "Broken files",
        "fuzz",
        "python -m tests.stress.fuzz",
        "Files cut, spliced, changed bit by bit, rebuilt with other values: a reader "
        "reads or refuses them, and anything else would have ended the run.",
        None,
        lambda rows: columns(rows, "reader", "examples", "read", "refused", "most_mb"),
    ),
    Section(
        "Broken files, by coverage",
        "fuzz_guided",
        "python -m tests.stress.fuzz_guided",
        "The same readers under libFuzzer: places of the code reached by whole files "
        "alone, and at the end.",
        None,
        lambda rows: columns(
            rows, "reader", "runs", "reached_by_whole_files", "reached", "seconds"
        ),
    ),
)
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;
padding:0 1rem;color:#222}table{border-collapse:collapse;font-size:13px;display:block;
overflow-x:auto}td,th{padding:.2rem .6rem;border-bottom:1px solid #ddd;text-align:left}
img{max-width:100%}code{background:#f3f3f3;padding:.1rem .3rem}.origin{color:#666}"""


# ---------------------------------------------------------------------------- page


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page, and the figures beside it if asked."""
    parser = argparse.ArgumentParser(description="one page from all rows")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    parser.add_argument("--figures", type=Path, help="folder for PNG files")
    arguments = parser.parse_args(argv)
    if not arguments.results.is_dir():
        parser.error(f"--results={arguments.results}: no such folder of .jsonl files")
    arguments.out.write_text(page(arguments.results, arguments.figures))
    print(arguments.out)


def page(results: Path, figures: Path | None = None) -> str:
    """Return the HTML, everything inside."""
    parts = [section_html(section, results, figures) for section in SECTIONS]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width">'
        f"<title>lite_jax: results</title><style>{STYLE}</style>"
        f"<h1>lite_jax: results</h1>{''.join(parts)}</html>\n"
    )


def section_html(section: Section, results: Path, figures: Path | None) -> str:
    """Return one section."""
    rows = read_rows(results, section.experiment)
    head = (
        f"<h2>{html.escape(section.title)}</h2><p>{html.escape(section.text)}</p>"
        f"<p><code>{html.escape(section.command)}</code></p>"
    )
    if not rows:
        return head + "<p>No rows yet.</p>"
    drawing = ""
    if section.draw:
        png = _png(section.draw(rows))
        if figures:
            figures.mkdir(parents=True, exist_ok=True)
            (figures / f"{_slug(section.title)}.png").write_bytes(png)
        source = base64.b64encode(png).decode()
        alt = html.escape(section.title)
        drawing = f'<img alt="{alt}" src="data:image/png;base64,{source}">'
    return head + drawing + _table(section.tabulate(rows)) + _origin(rows)


def _slug(title: str) -> str:
    return title.lower().replace(" ", "_").replace(":", "")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def _table(rows: list[Row]) -> str:
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    lines = (
        "".join(f"<td>{html.escape(str(row.get(name, '')))}</td>" for name in names)
        for row in rows
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><tr>{head}</tr>{body}</table>"


def _origin(rows: list[Row]) -> str:
    origins = sorted(
        {f"{r['device']}, {r.get('date', 'no date')}, jax {r['versions']['jax']}"
         for r in rows}
    )  # fmt: skip
    return f"<p class=origin>{html.escape('; '.join(origins))}</p>"


if __name__ == "__main__":
    main()
