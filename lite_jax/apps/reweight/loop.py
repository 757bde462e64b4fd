"""The rounds of a reweighting run, with checkpoints and metrics."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lite_jax.apps.reweight.settings import ReweightingSettings
from lite_jax.apps.reweight.setup import ReweightingSetup
from lite_jax.apps.reweight.training import ReweightingState, make_round
from lite_jax.run import build_gradient
from lite_jax.run.loop import Folder, take_steps
from lite_jax.run.progress import Reporter


def first_state(setup: ReweightingSetup) -> ReweightingState:
    """Return the state before the first round, a function of the seed."""
    params = setup.init(setup.key("classifier"))
    count = len(setup.sets.train.labels)
    meta_params = setup.weighting.init(setup.key("weighting"), count)
    meta_optimizer = _meta_optimizer(setup.config)
    return ReweightingState(
        jnp.int32(0), params, setup.optimizer.init(params), meta_params,
        meta_optimizer.init(meta_params), setup.estimator.init(params, meta_params),
        jnp.zeros(count), jnp.zeros(count),
    )  # fmt: skip


def _meta_optimizer(config: ReweightingSettings) -> optax.GradientTransformation:
    return build_gradient.make_optimizer(config.optimizer, config.train.steps)


def learn_weights(setup: ReweightingSetup, folder: Folder) -> ReweightingState:
    """Run the rounds left, and return the last state.

    Writes `metrics.jsonl`, `tensorboard/` and `checkpoints/last` to the folder, and at
    the end `weights.npy`, `[n]`, the mean weight of each training example.
    """
    config = setup.config
    run = make_round(
        setup.logits, setup.weighting, setup.estimator, setup.optimizer,
        _meta_optimizer(config),
        unroll=config.inner.steps, batch_size=config.train.batch_size,
        meta_batch_size=config.reweight.meta_batch_size,
    )  # fmt: skip
    state: ReweightingState = jax.tree.map(jnp.asarray, folder.saved)

    def take(step: int, report: Reporter) -> dict[str, Any]:
        nonlocal state
        state, metrics = run(state, setup.train, setup.meta, setup.key("batches"))
        return metrics

    def save(step: int, due: bool, report: Reporter) -> None:
        folder.last.save(step, state)

    take_steps(
        range(int(state.step) + 1, config.train.steps + 1), folder.writer,
        take=take, save=save, every=config.train.valid_every, unit="round",
    )  # fmt: skip
    np.save(folder.path / "weights.npy", np.asarray(state.importance()))
    return state
