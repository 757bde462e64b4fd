"""The section of `tests.stress.fuzz`.

It loads without hypothesis (extra `test`), which fuzzing needs and the page does not.
"""

from experiments.sections import Section, columns

SECTIONS = (
    Section(
        "Broken files",
        "fuzz",
        "python -m tests.stress.fuzz",
        "Files cut, spliced, changed bit by bit, rebuilt with other values: a reader "
        "reads or refuses them, and anything else would have ended the run.",
        lambda rows: columns(rows, "reader", "examples", "read", "refused", "most_mb"),
    ),
)
