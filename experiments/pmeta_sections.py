"""The sections of `experiments.pmeta`: methods compared, and ablations."""

from __future__ import annotations

from experiments.pmeta import TOLD
from experiments.sections import Row, Section, columns


def tabulate_methods(rows: list[Row]) -> list[Row]:
    """Return accuracy, memory and operations of each method."""
    names = (
        "method", "accuracy", "half_width", "layers", "paper_mb", "most_paper_mb",
        "step_mb", "mmacs",
    )  # fmt: skip
    compared = [r for r in rows if r["part"] == "methods"]
    return columns(compared, "part", *TOLD, *names)


def tabulate_ablations(rows: list[Row]) -> list[Row]:
    """Return the accuracy of each other part's variants."""
    names = (
        "forward", "backward", "channels", "batch", "sparse", "pool", "norm", "images",
        "accuracy", "half_width",
    )  # fmt: skip
    ablations = [r for r in rows if r["part"] != "methods"]
    return columns(ablations, "part", *TOLD, *names)


SECTIONS = (
    Section(
        "p-Meta beside other inner rules",
        "pmeta",
        "python -m experiments.pmeta --only=methods",
        "Accuracy of 5-way tasks after adaptation one image at a time; layers trained "
        "at each step; MB and millions of multiplications of an image by the paper's "
        "model, and MB of the compiled step.",
        tabulate_methods,
    ),
    Section(
        "What the parts of p-Meta do",
        "pmeta",
        "python -m experiments.pmeta",
        "Sides and ratios of attention, and static step sizes of channels; test "
        "batches; scores that multiply what is passed on; pool and norm under MAML.",
        tabulate_ablations,
    ),
)
