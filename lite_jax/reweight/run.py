"""The two jobs: learn weights of noisy examples, and prune a training set by them."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from tqdm import tqdm

from lite_jax import factory, nn, workdir
from lite_jax.checkpoint import Slot
from lite_jax.errors import UserError, unknown_name
from lite_jax.evaluate import format_table
from lite_jax.hypergrad import Estimator, conjugate_gradient, identity, neumann, sama
from lite_jax.metrics import Interval, MetricsWriter, append_row, interval, read_rows
from lite_jax.progress import Reporter
from lite_jax.reweight.pruning import kept_rows, mean_scores
from lite_jax.reweight.sets import LabelledSet, Sets, make_sets
from lite_jax.reweight.training import (
    Logits,
    State,
    make_plain_training,
    make_round,
)
from lite_jax.reweight.weightings import Weighting, meta_weight_net, per_example
from lite_jax.types import Network, Params

_logger = logging.getLogger(__name__)


def run_reweighting(config: ConfigDict, folder: Path) -> str:
    """Do the job that `config.reweight.job` names, and return its table.

    Leaves `config.json`, `metrics.jsonl`, `tensorboard/` and `checkpoints/last` in the
    folder, and `weights.npy`, each training example's mean weight; pruning adds
    `pruning.jsonl`, a row a network. A run that was stopped goes on.

    Raises:
        UserError: Settings or data that cannot serve the job, or a workdir of another
            run; all are looked at before anything is written.
    """
    job = factory.pick("reweight.job", config.reweight.job, _JOBS)
    _check_settings(config)
    _shares_kept(config)
    sets = make_sets(config)
    bench = _Bench.of(config, sets)
    workdir.claim(folder, config)
    _logger.info(
        "%s: %d training examples (%s), %d clean ones, %d test ones, %d classes",
        config.name, len(sets.train.labels), _noise(sets), len(sets.meta.labels),
        len(sets.test.labels), sets.num_classes,
    )  # fmt: skip
    return job(config, bench, folder)


class _Bench(NamedTuple):
    """The sets, on the device too, and what is trained on them."""

    sets: Sets
    train: LabelledSet
    meta: LabelledSet
    init: Callable[[Any], Params]
    logits: Logits
    optimizer: optax.GradientTransformation
    weighting: Weighting
    estimator: Estimator

    @classmethod
    def of(cls, config: ConfigDict, sets: Sets) -> _Bench:
        network = _make_network(config, sets)
        spec = jax.ShapeDtypeStruct(sets.train.inputs.shape[1:], jnp.float32)

        def init(key: Any) -> Params:
            backbone_key, head_key = jax.random.split(key)
            params = {"backbone": network.init(backbone_key, spec)}
            size = nn.feature_size(network, params["backbone"], _one(sets.train.inputs))
            kernel = jax.random.normal(head_key, (size, sets.num_classes)) / size**0.5
            return params | {
                "head": {"kernel": kernel, "bias": jnp.zeros(sets.num_classes)}
            }

        def logits(params: Params, inputs: Any) -> jax.Array:
            features = network.apply(params["backbone"], inputs)
            return features @ params["head"]["kernel"] + params["head"]["bias"][None]

        train, meta = jax.device_put((sets.train, sets.meta))
        inner = config.inner
        make = factory.pick("inner.optimizer", inner.optimizer, _OPTIMIZERS)
        optimizer = make(inner.learning_rate)
        weighting, estimator = (
            _make_weighting(config),
            _make_estimator(config, optimizer),
        )
        return cls(sets, train, meta, init, logits, optimizer, weighting, estimator)

    def plain(self, config: ConfigDict) -> Callable[..., Params]:
        """Return ordinary training of as many steps as reweighting takes."""
        return make_plain_training(
            self.logits,
            self.optimizer,
            steps=config.train.steps * config.inner.steps,
            batch_size=config.train.batch_size,
        )

    def accuracy(self, params: Params) -> Interval:
        """Return the accuracy on the test set, with the interval over its examples."""
        logits = jax.jit(self.logits)(params, self.sets.test.inputs)
        return interval(np.asarray(logits.argmax(1)) == self.sets.test.labels)


# ----------------------------------------------------------------------------- jobs


def _reweight(config: ConfigDict, bench: _Bench, folder: Path) -> str:
    """Train with learned weights and without, and on the clean examples; compare."""
    state = _learn_weights(config, bench, folder)
    weights = np.asarray(state.importance())
    start, train = bench.init(_key(config, "classifier")), bench.plain(config)
    ordinary = {"all examples equal": bench.train, "the clean ones alone": bench.meta}
    results = {
        name: bench.accuracy(train(start, examples, _key(config, "plain")))
        for name, examples in ordinary.items()
    }
    results["learned weights"] = bench.accuracy(state.params)
    with closing(MetricsWriter(folder, config.train.steps)) as writer:
        for name, result in results.items():
            row = {"learner": name, **result._asdict()}
            writer.write("test", config.train.steps, row)
        told = _told_apart(weights, bench.sets.wrong)
        writer.write("test", config.train.steps, {"learner": "weights", **told})
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


def _prune(config: ConfigDict, bench: _Bench, folder: Path) -> str:
    """Train on what each rule keeps, from the same seeds, and compare."""
    settings, keep = config.reweight, _shares_kept(config)
    weights = np.asarray(_learn_weights(config, bench, folder).importance())
    rules = _rules(config, bench, weights)
    path, train = folder / "pruning.jsonl", bench.plain(config)
    rows = read_rows(path)
    done = {(r["rule"], r["keep"], r["seed"]): r for r in rows}
    for share, (name, rank), seed in _all_runs(keep, rules, settings.seeds):
        if (name, share, seed) in done:
            continue
        kept = rank(share, seed)
        subset = jax.tree.map(lambda x, kept=kept: x[kept], bench.train)
        params = train(
            bench.init(_key(config, "classifier", seed)),
            subset,
            _key(config, "plain", seed),
        )
        row = {"rule": name, "keep": share, "seed": seed}
        row |= {"kept": len(kept), "accuracy": bench.accuracy(params).mean}
        if bench.sets.wrong is not None:
            row["share_wrong"] = float(bench.sets.wrong[kept].mean())
        append_row(path, row)
        done[name, share, seed] = row
    return _pruning_table(keep, rules, settings.seeds, done)


def _shares_kept(config: ConfigDict) -> list[float]:
    """Return the shares of `reweight.keep`."""
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


_JOBS = {"prune": _prune, "reweight": _reweight}

Rules = dict[str, Callable[[float, int], np.ndarray]]
"""Name → `(share, seed) -> rows kept`."""


def _rules(config: ConfigDict, bench: _Bench, weights: np.ndarray) -> Rules:
    """Return the ways of choosing what is kept.

    Difficulty scores are those of `seeds` networks after a tenth of the training.
    """
    early = make_plain_training(
        bench.logits,
        bench.optimizer,
        steps=max(1, config.train.steps * config.inner.steps // 10),
        batch_size=config.train.batch_size,
    )
    networks = [
        early(
            bench.init(_key(config, "scores", seed)),
            bench.train,
            _key(config, "early", seed),
        )
        for seed in range(config.reweight.seeds)
    ]
    scores = mean_scores(bench.logits, networks, bench.train)

    def random(share: float, seed: int) -> np.ndarray:
        noise = np.random.default_rng([config.seed, seed]).random(len(weights))
        return kept_rows(noise, share, highest=True)

    def by(scores: np.ndarray, highest: bool) -> Callable[[float, int], np.ndarray]:
        return lambda share, seed: kept_rows(scores, share, highest=highest)

    found: Rules = {"learned weights": by(weights, True), "random": random}
    for name, values in scores.items():
        found[f"{name}, hardest"] = by(values, True)
        found[f"{name}, easiest"] = by(values, False)
    return found


def _all_runs(
    keep: list[float], rules: Rules, seeds: int
) -> Iterator[tuple[float, tuple[str, Callable[[float, int], np.ndarray]], int]]:
    """Yield every network that is trained; one share after the other, compiled once."""
    yield from ((1.0, ("everything", _everything(rules)), s) for s in range(seeds))
    for share in keep:
        for rule in rules.items():
            yield from ((share, rule, seed) for seed in range(seeds))


def _everything(rules: Rules) -> Callable[[float, int], np.ndarray]:
    return lambda share, seed: rules["learned weights"](1.0, seed)


def _pruning_table(
    keep: list[float], rules: Rules, seeds: int, done: dict[Any, dict[str, Any]]
) -> str:
    def cell(name: str, share: float) -> str:
        values = [100 * done[name, share, s]["accuracy"] for s in range(seeds)]
        return f"{np.mean(values):.1f} ± {np.std(values):.1f}"

    header = ["kept", *(f"{100 * share:g} %" for share in keep)]
    rows = [[name, *(cell(name, share) for share in keep)] for name in rules]
    whole = cell("everything", 1.0)
    return (
        f"{format_table(header, rows)}\ntest accuracy in %, mean and deviation of "
        f"{seeds} seeds; with everything {whole}"
    )


# ------------------------------------------------------------------------- the loop


def _learn_weights(config: ConfigDict, bench: _Bench, folder: Path) -> State:
    """Run the bilevel loop, from the last checkpoint on, and return its last state."""
    weighting, estimator = bench.weighting, bench.estimator
    meta_optimizer = factory.make_optimizer(config)
    count = len(bench.sets.train.labels)
    params = bench.init(_key(config, "classifier"))
    meta_params = weighting.init(_key(config, "weighting"), count)
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
            state, metrics = run(
                state, bench.train, bench.meta, _key(config, "batches")
            )
            report.later(step, metrics)
            if step % config.train.valid_every and step != total:
                continue
            report.now()
            slot.save(step, state)
    np.save(folder / "weights.npy", np.asarray(state.importance()))
    return state


def _make_weighting(config: ConfigDict) -> Weighting:
    weightings = {
        "meta_weight_net": functools.partial(meta_weight_net, config.reweight.hidden),
        "per_example": per_example,
    }
    return factory.pick("reweight.weighting", config.reweight.weighting, weightings)()


def _make_estimator(
    config: ConfigDict, optimizer: optax.GradientTransformation
) -> Estimator:
    settings = config.hypergrad
    estimators = {
        "conjugate_gradient": lambda: conjugate_gradient(
            settings.steps, settings.damping
        ),
        "identity": identity,
        "neumann": lambda: neumann(settings.steps, config.inner.learning_rate),
        "sama": lambda: sama(optimizer),
    }
    return factory.pick("hypergrad.through", settings.through, estimators)()


def _make_network(config: ConfigDict, sets: Sets) -> Network:
    settings = config.reweight
    if settings.network == "transformer":
        if sets.vocabulary is None:
            raise UserError(
                f"reweight.network=transformer reads texts, and data.dataset="
                f"{config.data.dataset} gives vectors: set reweight.network=mlp"
            )
        return nn.text_encoder(
            sets.vocabulary,
            width=settings.width,
            depth=settings.depth,
            heads=settings.heads,
        )
    if settings.network != "mlp":
        raise unknown_name("reweight.network", settings.network, _NETWORKS)
    if sets.vocabulary is not None:
        raise UserError(
            f"reweight.network=mlp reads vectors, and data.dataset="
            f"{config.data.dataset} gives texts: set reweight.network=transformer"
        )
    return nn.mlp(settings.width, settings.depth)


_NETWORKS = ("mlp", "transformer")
_OPTIMIZERS = {"adam": optax.adam, "sgd": optax.sgd}


def _check_settings(config: ConfigDict) -> None:
    least = {
        "train.steps": config.train.steps,
        "train.batch_size": config.train.batch_size,
        "train.valid_every": config.train.valid_every,
        "inner.steps": config.inner.steps,
        "reweight.meta_batch_size": config.reweight.meta_batch_size,
        "reweight.seeds": config.reweight.seeds,
        "reweight.width": config.reweight.width,
        "reweight.heads": config.reweight.heads,
        "reweight.vocabulary": config.reweight.vocabulary,
        "reweight.length": config.reweight.length,
    }
    for name, value in least.items():
        if value < 1:
            raise UserError(f"{name}={value}: expected 1 or more")
    if config.reweight.width % config.reweight.heads:
        raise UserError(
            f"reweight.width={config.reweight.width} is no multiple of "
            f"reweight.heads={config.reweight.heads}"
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


def _noise(sets: Sets) -> str:
    if sets.wrong is None:
        return "labels as they are"
    return f"{100 * sets.wrong.mean():.0f} % of the labels wrong"


def _key(config: ConfigDict, use: str, index: int = 0) -> Any:
    key = jax.random.fold_in(jax.random.key(config.seed), _USES.index(use))
    return jax.random.fold_in(key, index)


_USES = ("classifier", "weighting", "batches", "plain", "scores", "early")


def _one(inputs: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype)
