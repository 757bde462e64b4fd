"""The bilevel loop of a run: rounds, checkpoints, metrics."""

from __future__ import annotations

import contextlib
import logging
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from lite_jax.apps.reweight.bench import Bench
from lite_jax.apps.reweight.training import State, make_round
from lite_jax.run import build_gradient
from lite_jax.run.checkpoint import Slot
from lite_jax.run.metrics import MetricsWriter
from lite_jax.run.progress import Reporter

_logger = logging.getLogger(__name__)


def learn_weights(bench: Bench, folder: Path) -> State:
    """Run the bilevel loop, from the last checkpoint on, and return its last state.

    Leaves `metrics.jsonl`, `tensorboard/` and `checkpoints/last` in the folder, and at
    the end `weights.npy`, `[n]`, each training example's mean weight.
    """
    config, weighting, estimator = bench.config, bench.weighting, bench.estimator
    meta_optimizer = build_gradient.make_optimizer(config)
    count = len(bench.sets.train.labels)
    params = bench.init(bench.key("classifier"))
    meta_params = weighting.init(bench.key("weighting"), count)
    state = State(
        jnp.int32(0), params, bench.optimizer.init(params), meta_params,
        meta_optimizer.init(meta_params), estimator.init(params, meta_params),
        jnp.zeros(count), jnp.zeros(count),
    )  # fmt: skip
    run = make_round(
        bench.logits, weighting, estimator, bench.optimizer, meta_optimizer,
        unroll=config.inner.steps, batch_size=config.train.batch_size,
        meta_batch_size=config.reweight.meta_batch_size,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        slot = stack.enter_context(closing(Slot(folder / "checkpoints" / "last")))
        if slot.step() is not None:
            state = jax.tree.map(jnp.asarray, slot.restore(state))
            _logger.info("resumed after round %d", int(state.step))
        done, total = int(state.step), config.train.steps
        writer = stack.enter_context(closing(MetricsWriter(folder, done)))
        bar = stack.enter_context(tqdm(total=total, initial=done, unit="round"))
        report = Reporter(writer, bar, 1)
        for step in range(done + 1, total + 1):
            state, metrics = run(state, bench.train, bench.meta, bench.key("batches"))
            report.later(step, metrics)
            if step % config.train.valid_every and step != total:
                continue
            report.now()
            slot.save(step, state)
    np.save(folder / "weights.npy", np.asarray(state.importance()))
    return state
