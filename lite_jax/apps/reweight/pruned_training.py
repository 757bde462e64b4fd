"""The job `prune`: training on the examples that each pruning rule keeps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from lite_jax.apps.reweight.loop import learn_weights
from lite_jax.apps.reweight.pruning import SCORES, kept_rows, mean_scores
from lite_jax.apps.reweight.settings import ReweightingSettings
from lite_jax.apps.reweight.setup import ReweightingSetup
from lite_jax.errors import UserError
from lite_jax.files import append_row, read_rows
from lite_jax.run.evaluate import format_table
from lite_jax.run.loop import Folder

EVERYTHING = "everything"


class _Training(NamedTuple):
    """One network: the rule that selects its examples, the share kept, the seed."""

    rule: str
    keep: float
    seed: int


def compare_rules(setup: ReweightingSetup, folder: Folder) -> str:
    """Compare networks trained, from the same seeds, on the examples of each rule.

    Writes the files of `learn_weights`, and `pruning.jsonl`, a row for each network.
    Networks that have a row are not trained again.

    Returns:
        A table of test accuracies, a row for each rule and a column for each share.
    """
    keep, seeds = shares_kept(setup.config), setup.config.reweight.seeds
    weights = np.asarray(learn_weights(setup, folder).importance())
    path, train = folder.path / "pruning.jsonl", setup.plain()
    row_of = {_Training(r["rule"], r["keep"], r["seed"]): r for r in read_rows(path)}
    rules = _rules(setup, weights)
    for training in _trainings(keep, rules, seeds):
        if training in row_of:
            continue
        rows = np.arange(len(weights))
        if training.rule != EVERYTHING:
            rows = rules[training.rule](training.keep, training.seed)
        params = train(
            setup.init(setup.key("classifier", training.seed)),
            jax.tree.map(lambda x, rows=rows: x[rows], setup.train),
            setup.key("plain", training.seed),
        )
        row: dict[str, Any] = training._asdict()
        row |= {"kept": len(rows), "accuracy": setup.accuracy(params).mean}
        if setup.sets.wrong is not None:
            row["share_wrong"] = float(setup.sets.wrong[rows].mean())
        append_row(path, row)
        row_of[training] = row
    return _table(keep, rules, seeds, row_of)


def shares_kept(config: ReweightingSettings) -> list[float]:
    """Return the shares in `reweight.keep`, each in (0, 1].

    Raises:
        UserError: It is no list of such shares.
    """
    text = str(config.reweight.keep)
    try:
        keep = [float(x) for x in text.split(",")]
    except ValueError:
        keep = [0.0]
    if not all(0 < share <= 1 for share in keep):
        raise UserError(
            f"reweight.keep={text}: expected shares above 0 up to 1, as 0.9,0.7,0.5"
        )
    return keep


Rules = dict[str, Callable[[float, int], np.ndarray]]
"""Name → `(share, seed) -> rows kept`."""


def _rules(setup: ReweightingSetup, weights: np.ndarray) -> Rules:
    """Return the pruning rules.

    Scores of difficulty are means over `seeds` networks after a tenth of the training.
    These networks are trained on the first use of a score.
    """
    config, train = setup.config, setup.plain(share=0.1)

    @functools.cache
    def scores() -> dict[str, np.ndarray]:
        networks = [
            train(
                setup.init(setup.key("scores", seed)),
                setup.train,
                setup.key("early", seed),
            )
            for seed in range(config.reweight.seeds)
        ]
        return mean_scores(setup.logits, networks, setup.train)

    def random(share: float, seed: int) -> np.ndarray:
        noise = np.random.default_rng([config.seed, seed]).random(len(weights))
        return kept_rows(noise, share, highest=True)

    def learned(share: float, seed: int) -> np.ndarray:
        return kept_rows(weights, share, highest=True)

    def by(score: str, highest: bool) -> Callable[[float, int], np.ndarray]:
        return lambda share, seed: kept_rows(scores()[score], share, highest=highest)

    rules: Rules = {"learned weights": learned, "random": random}
    for name in SCORES:
        rules[f"{name}, hardest"] = by(name, True)
        rules[f"{name}, easiest"] = by(name, False)
    return rules


def _trainings(keep: list[float], rules: Rules, seeds: int) -> Iterator[_Training]:
    """Yield all networks, grouped by share: each share is compiled once."""
    yield from (_Training(EVERYTHING, 1.0, seed) for seed in range(seeds))
    for share in keep:
        for rule in rules:
            yield from (_Training(rule, share, seed) for seed in range(seeds))


def _table(
    keep: list[float], rules: Rules, seeds: int, row_of: dict[_Training, dict[str, Any]]
) -> str:
    def cell(rule: str, share: float) -> str:
        rows = [row_of[_Training(rule, share, seed)] for seed in range(seeds)]
        values = [100 * row["accuracy"] for row in rows]
        return f"{np.mean(values):.1f} ± {np.std(values):.1f}"

    header = ["kept", *(f"{100 * share:g} %" for share in keep)]
    rows = [[rule, *(cell(rule, share) for share in keep)] for rule in rules]
    return (
        f"{format_table(header, rows)}\ntest accuracy in %, mean and deviation of "
        f"{seeds} seeds; with everything {cell(EVERYTHING, 1.0)}"
    )
