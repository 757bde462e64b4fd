"""The job that trains on noisy labels, with learned weights and without."""

from __future__ import annotations

from typing import Any

import numpy as np

from lite_jax.apps.reweight.bench import Bench
from lite_jax.apps.reweight.loop import learn_weights
from lite_jax.apps.reweight.pruning import kept_rows
from lite_jax.run.evaluate import format_table
from lite_jax.run.loop import Folder


def compare_training(bench: Bench, folder: Folder) -> str:
    """Train with learned weights and without, and on the clean examples; compare."""
    state = learn_weights(bench, folder)
    steps, weights = bench.config.train.steps, np.asarray(state.importance())
    start, train = bench.init(bench.key("classifier")), bench.plain()
    ordinary = {"all examples equal": bench.train, "the clean ones alone": bench.meta}
    results = {
        name: bench.accuracy(train(start, examples, bench.key("plain")))
        for name, examples in ordinary.items()
    }
    results["learned weights"] = bench.accuracy(state.params)
    for name, result in results.items():
        row = {"learner": name, **result._asdict()}
        folder.writer.write("test", steps, row)
    told = _told_apart(weights, bench.sets.wrong)
    folder.writer.write("test", steps, {"learner": "weights", **told})
    table = format_table(
        ["training", "test accuracy"],
        [[name, result.percent()] for name, result in results.items()],
    )
    if not told:
        return table
    return (
        f"{table}\nmean weight of right labels {told['right']:.3f}, of wrong ones "
        f"{told['wrong']:.3f}; of the {told['count']} least weighted "
        f"{100 * told['share_wrong']:.1f} % are wrong, of all "
        f"{100 * told['share_wrong_of_all']:.1f} %"
    )


def _told_apart(weights: np.ndarray, wrong: np.ndarray | None) -> dict[str, Any]:
    """Return how well weights tell wrong labels, where it is known which are."""
    if wrong is None or not wrong.any():
        return {}
    lowest = kept_rows(weights, wrong.mean(), highest=False)
    return {
        "right": float(weights[~wrong].mean()),
        "wrong": float(weights[wrong].mean()),
        "count": len(lowest),
        "share_wrong": float(wrong[lowest].mean()),
        "share_wrong_of_all": float(wrong.mean()),
    }
