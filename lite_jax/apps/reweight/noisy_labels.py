"""The job `reweight`: training on noisy labels, with and without learned weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from lite_jax.apps.reweight.loop import learn_weights
from lite_jax.apps.reweight.pruning import kept_rows
from lite_jax.apps.reweight.setup import ReweightingSetup
from lite_jax.run.evaluate import format_table
from lite_jax.run.loop import Folder


def compare_training(setup: ReweightingSetup, folder: Folder) -> str:
    """Compare training with learned weights, with equal weights, and on clean examples.

    Returns:
        A table of test accuracies, and the mean weights of right and wrong labels.
    """
    state = learn_weights(setup, folder)
    steps, weights = setup.config.train.steps, np.asarray(state.importance())
    start, train = setup.init(setup.key("classifier")), setup.plain()
    ordinary = {"all examples equal": setup.train, "the clean ones alone": setup.meta}
    results = {
        name: setup.accuracy(train(start, examples, setup.key("plain")))
        for name, examples in ordinary.items()
    }
    results["learned weights"] = setup.accuracy(state.params)
    for name, result in results.items():
        row = {"learner": name, **result._asdict()}
        folder.writer.write("test", steps, row)
    summary = _label_separation(weights, setup.sets.wrong)
    folder.writer.write("test", steps, {"learner": "weights", **summary})
    table = format_table(
        ["training", "test accuracy"],
        [[name, result.percent()] for name, result in results.items()],
    )
    if not summary:
        return table
    return (
        f"{table}\nmean weight of right labels {summary['right']:.3f}, of wrong ones "
        f"{summary['wrong']:.3f}; of the {summary['count']} least weighted "
        f"{100 * summary['share_wrong']:.1f} % are wrong, of all "
        f"{100 * summary['share_wrong_of_all']:.1f} %"
    )


def _label_separation(weights: np.ndarray, wrong: np.ndarray | None) -> dict[str, Any]:
    """Return how well weights separate right labels from wrong ones.

    Args:
        weights: `[n]`.
        wrong: `[n]` bool, which labels are wrong; None if this is not known.

    Returns:
        Mean weights, the number of examples with the lowest weights, and the share of
        wrong labels among them and among all; empty where no label is known as wrong.
    """
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
