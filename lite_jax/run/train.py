"""Meta-training of a learner by a configuration, with validation and tests."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import tempfile
from collections.abc import Callable, Container
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lite_jax.errors import UserError
from lite_jax.nn import save_weights
from lite_jax.run import (
    build_data,
    build_gradient,
    build_learner,
    memory_budget,
    parallel,
)
from lite_jax.run import workdir as workdirs
from lite_jax.run.build_data import Sources
from lite_jax.run.configs import check_at_least, read_settings
from lite_jax.run.evaluate import Results, evaluate, make_scorer, run_tests, split_tasks
from lite_jax.run.feed import Feed
from lite_jax.run.loop import Folder, open_folder, take_steps
from lite_jax.run.progress import Reporter
from lite_jax.run.settings import Settings
from lite_jax.types import GradFn, Key, Learner, Params, Task

_logger = logging.getLogger(__name__)


class TrainState(NamedTuple):
    """The state of training; with the seed it determines the next step.

    Attributes:
        step: int32 scalar, the number of updates so far.
        params: Meta-parameters.
        opt_state: The state of the optimiser.
    """

    step: jax.Array
    params: Params
    opt_state: Any


def train_and_evaluate(config: ConfigDict | Settings, workdir: Path) -> Results:
    """Train, or resume training, in `workdir`; then test the best parameters.

    Writes `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/{last,best}` and
    `backbone.safetensors`, the best parameters' backbone, to the workdir. A stopped run
    resumes from its last checkpoint, with the results of a run that was not stopped:
    step t depends only on the seed, on t and on the state before it.

    Returns:
        `{kind of test episode: {learner or "raw pixels": Interval}}`.

    Raises:
        UserError: A setting out of range, data that do not fit the episodes, a workdir
            of another run, or a loss that is not finite. Settings and data are checked
            before anything is written.
        Preempted: SIGTERM came in training, and a checkpoint of that step is saved.
    """
    config = read_settings(config, Settings)
    _check_settings(config)
    workdirs.check_hosts_agree(parallel.gather(dataclasses.asdict(config)))
    mesh = parallel.make_mesh(config.devices.tasks, config.devices.examples)
    sources = build_data.make_sources(config)
    learner, tested = build_learner.make_learners(config, sources)
    optimizer = _make_optimizer(config, learner)
    train_step = make_train_step(
        build_gradient.make_grad_fn(config, learner), optimizer, mesh
    )
    build_data.check_episodes(config, sources)  # reads images, so it comes last
    params = build_learner.init_params(config, learner, sources)
    state = init_state(optimizer, params, learner.frozen)
    feed = Feed(config, sources("train"), mesh)

    with contextlib.ExitStack() as stack:
        original_config = config
        stack.enter_context(memory_budget.out_of_memory_explained(original_config))
        if config.gradient.chunk_size == build_gradient.AUTO and config.train.steps:
            config, train_step = _fitting_config_and_step(
                config, learner, mesh, state, feed.step(1)
            )
        if not parallel.is_main():  # other processes write to a folder that is deleted
            workdir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        start = {"state": state, "best": np.array(-1, np.float32)}
        opened = open_folder(
            workdir, original_config, start, lambda saved: saved["state"].step
        )
        folder = stack.enter_context(opened)
        _log_run(config, sources, params, learner.frozen)
        validate = _make_validation(config, tested, sources)
        _train(config, mesh, feed, train_step, validate, folder)
        if parallel.is_main():
            params = folder.best.restore(params)
        params = parallel.from_main(params)
        save_weights(workdir / "backbone.safetensors", params["backbone"])
        results = run_tests(config, tested, params, sources)
        for kind, by_learner in results.items():
            for name, result in by_learner.items():
                row = {"episodes": kind, "learner": name, **result._asdict()}
                folder.writer.write("test", config.train.steps, row)
    return results


def _make_optimizer(config: Settings, learner: Learner) -> optax.GradientTransformation:
    return build_gradient.make_optimizer(
        config.optimizer, config.train.steps, learner.constraint
    )


def _fitting_config_and_step(
    config: Settings,
    learner: Learner,
    mesh: Mesh | None,
    state: TrainState,
    tasks: Task,
) -> tuple[Settings, Any]:
    """Return the config with the largest chunk that fits, and the compiled step."""
    inputs = (
        parallel.replicate(mesh, state),
        tasks,
        parallel.replicated_key(mesh, config.seed),
    )

    def build(chunk_size: int) -> Any:
        grad_fn = build_gradient.make_grad_fn(
            config.with_chunk_size(chunk_size), learner
        )
        optimizer = _make_optimizer(config, learner)
        return make_train_step(grad_fn, optimizer, mesh).lower(*inputs).compile()

    settings = config.gradient
    fit = memory_budget.largest_chunk(
        build, build_gradient.largest_set(config), settings.memory_budget_gb
    )
    _logger.info(
        "chunk_size=auto: chunks of %d images, a step of which needs %.3g GB a device",
        fit.chunk_size, fit.num_bytes / memory_budget.GB,
    )  # fmt: skip
    return config.with_chunk_size(fit.chunk_size), fit.program


def init_state(
    optimizer: optax.GradientTransformation,
    params: Params,
    frozen: Container[str] = (),
) -> TrainState:
    """Return the state before the first step.

    Args:
        optimizer: The optimiser.
        params: Name → parameters.
        frozen: Names of parameters that the optimiser has no state for.
    """
    learned = {name: x for name, x in params.items() if name not in frozen}
    return TrainState(jnp.int32(0), params, optimizer.init(learned))


def make_train_step(
    grad_fn: GradFn,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
) -> jax.stages.Wrapped:
    """Return the compiled `(state, tasks, seed_key) -> (state, metrics)`.

    `tasks` are stacked along a leading axis. Each device computes one task at a time,
    so memory is that of one task, and gradients are averaged. The key of a step is
    derived from the seed's key and the step, that of a task from the key of the step.
    Parameters without a gradient are not changed. `state` is donated.
    """
    mean_over_tasks = parallel.mean_over_tasks(grad_fn, mesh)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: TrainState, tasks: Task, seed_key: Key):
        key = jax.random.fold_in(seed_key, state.step)
        (loss, aux), grads = mean_over_tasks(state.params, tasks, key)
        learned = {name: state.params[name] for name in grads}
        updates, opt_state = optimizer.update(grads, state.opt_state, learned)
        params = state.params | optax.apply_updates(learned, updates)
        norms = {f"grad_norm/{k}": optax.tree.norm(x) for k, x in grads.items()}
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **norms, **aux}
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def _train(
    config: Settings,
    mesh: Mesh | None,
    feed: Feed,
    train_step: Callable[..., Any],
    validate: Callable[[Params], float | None],
    folder: Folder,
) -> None:
    """Take the steps left, and validate and save after every `train.valid_every`."""
    best = float(folder.saved["best"])
    state = parallel.replicate(mesh, folder.saved["state"])
    if not config.train.steps:
        folder.best.save(0, state.params)
        return
    steps = range(int(state.step) + 1, config.train.steps + 1)
    seed_key = parallel.replicated_key(mesh, config.seed)

    def take(step: int, report: Reporter) -> dict[str, Any]:
        nonlocal state
        with report.waiting_for_data():
            tasks = next(batches)
        state, metrics = train_step(state, tasks, seed_key)
        return metrics

    def save(step: int, due: bool, report: Reporter) -> None:
        nonlocal best
        host_state = parallel.on_this_host(mesh, state)
        if due:
            accuracy = validate(host_state.params)
            if accuracy is not None:
                folder.writer.write("valid", step, {"accuracy": accuracy})
                report.note(valid=f"{accuracy:.3f}")
            if accuracy is None or accuracy > best:
                best = best if accuracy is None else accuracy
                folder.best.save(step, host_state.params)
        folder.last.save(
            step, {"state": host_state, "best": np.array(best, np.float32)}
        )

    with closing(feed.ahead(steps)) as batches:
        take_steps(
            steps, folder.writer, take=take, save=save, every=config.train.valid_every,
            width=config.train.tasks_per_step,
            tolerated=config.optimizer.skip_not_finite,
        )  # fmt: skip


def _make_validation(
    config: Settings, learner: Learner, sources: Sources
) -> Callable[[Params], float | None]:
    """Return `params -> mean accuracy` on the validation tasks, None without tasks."""
    if not config.valid.tasks:
        return lambda params: None
    score = make_scorer(learner, build_gradient.checked_chunk_size(config))
    source, settings = sources("valid"), config.valid.episode

    def validate(params: Params) -> float:
        tasks = split_tasks(config, settings, source, "valid", config.valid.tasks)
        mean = evaluate({"": (score, params)}, tasks)[""].mean
        return float(np.float32(mean))  # the checkpoint stores float32

    return validate


def _check_settings(config: Settings) -> None:
    from_1 = "data.prefetch", "train.tasks_per_step", "train.valid_every", "test.tasks"
    check_at_least(config, 1, *from_1)
    from_0 = "data.workers", "train.steps", "valid.tasks", "optimizer.skip_not_finite"
    check_at_least(config, 0, *from_0)
    width, devices = config.train.tasks_per_step, config.devices.tasks
    if devices > 0 and width % devices:
        raise UserError(
            f"devices.tasks={devices} does not divide train.tasks_per_step={width}: "
            "every device computes equally many tasks, so change one of them"
        )


def _log_run(
    config: Settings, sources: Sources, params: Params, frozen: Container[str]
) -> None:
    """Log the device, the data, the episodes and the sizes of the parameters."""
    spec = build_data.make_spec(config.train.episode)
    sizes = {n: sum(x.size for x in jax.tree.leaves(p)) for n, p in params.items()}
    num_frozen = sum(size for name, size in sizes.items() if name in frozen)
    settings = config.gradient
    h_text = (
        ""
        if settings.estimator in ("exact", "plain")
        else f", H = {settings.num_backprop}"
    )
    shape = " × ".join(map(str, sources("train").image_shape))
    _logger.info("%s on %s", config.name, jax.devices()[0])
    _logger.info(
        "data: %s, %d training classes, images %s",
        config.data.dataset, len(sources("train").class_names), shape,
    )  # fmt: skip
    if config.learner == "classifier":
        _logger.info("batches of %d images", config.train.batch_size)
    else:
        _logger.info(
            "episodes: %s, N ≤ %d support, M ≤ %d query; gradient: %s%s, chunks of %d",
            spec.describe(), spec.support_size, spec.query_size,
            settings.estimator, h_text, build_gradient.checked_chunk_size(config),
        )  # fmt: skip
    _logger.info(
        "%s on %s: %s parameters, %s of them frozen",
        config.learner, config.backbone.name, f"{sum(sizes.values()):,}",
        f"{num_frozen:,}",
    )  # fmt: skip
