"""What learned weights buy: noisy labels, and pruning, by estimator and by rule.

    python -m experiments.sama [--smoke] [--out=experiments/results/sama.jsonl]
        [--seeds=3] [--only=reweight|prune|scale|devices]

Parts of the rows:

- "reweight": test accuracy of `configs/sama_reweight.py` on digits and on generated
  texts with 40 % of the labels wrong, by weighting and estimator, beside ordinary
  training on all examples and on the clean ones alone.
- "prune": test accuracy of `configs/sama_prune.py` on digits, labels as they are and
  20 % wrong, by rule and share kept.
- "scale": temporary bytes as compiled and seconds of one hypergradient of per-example
  weights of a transformer, at growing size, by estimator; damping 300 under conjugate
  gradients, K = 5 for all that have steps.
- "devices": the same with Meta-Weight-Net on 1, 2 and 4 devices that the host is made
  to show, 16 texts each: how often devices meet in a hypergradient, those in loops as
  often as the loop runs, the bytes that each puts in, and its temporary bytes. Host
  devices share the cores, so no time is told.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from benchmarks.scaling import collectives
from benchmarks.timing import median_seconds
from configs import sama_prune, sama_reweight
from experiments.rows import emit, parser, rounded
from experiments.sections import Row, Section, columns, mean_and_each
from lite_jax import Network, hypergrad, nn
from lite_jax.apps.reweight.run import run_reweighting
from lite_jax.apps.reweight.training import reweighting_problem
from lite_jax.apps.reweight.weightings import meta_weight_net, per_example_weighting
from lite_jax.files import read_rows
from lite_jax.run import memory_budget

ROUNDS, STEPS, DAMPING = 4, 5, 300.0
BATCH, LENGTH, VOCABULARY = 16, 32, 1000
OPTIMIZER = optax.adam(1e-3)


def main(argv: Sequence[str] | None = None) -> None:
    """Emit the rows of every part."""
    found = parser("learned weights of training examples")
    found.add_argument("--seeds", type=int, default=3)
    found.add_argument("--only", choices=PARTS, help="one part")
    arguments = found.parse_args(argv)
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            for row in part(arguments):
                row = {"experiment": "sama", "part": name} | rounded(row)
                emit(arguments.out, row)


def reweighted(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield test accuracies by data set, weighting and estimator."""
    digits = ("", "unadapted", "per_example", "cg", "neumann")
    cases = [("digits", method) for method in digits]
    cases += [("text", method) for method in digits[:2]]  # each takes minutes
    for data, method in cases[:1] if arguments.smoke else cases:
        for seed in range(arguments.seeds if not arguments.smoke else 1):
            for row in _run(
                sama_reweight.get_config, [data, method], seed, arguments.smoke
            ):
                yield {"dataset": data, "method": method or "sama"} | row


def pruned(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the mean test accuracy over seeds by rule and share kept."""
    for noise in ("",) if arguments.smoke else ("", "noisy"):
        names = ["digits", noise]
        for row in _run(
            sama_prune.get_config, names, 0, arguments.smoke, "pruning.jsonl"
        ):
            yield {"labels": noise or "as they are"} | row


def _run(
    get_config: Callable[[str], ConfigDict],
    names: list[str],
    seed: int,
    smoke: bool,
    file: str = "metrics.jsonl",
) -> Iterator[Row]:
    """Yield the results of a run."""
    names = [x for x in [*names, "smoke" if smoke else ""] if x]
    config = get_config(",".join(names))
    with config.unlocked():
        config.seed = seed
        if smoke:
            config.train.steps, config.train.valid_every = 1, 1
            config.reweight.width, config.reweight.keep = 8, "0.5"
    with tempfile.TemporaryDirectory() as folder:
        run_reweighting(config, Path(folder))
        rows = read_rows(Path(folder) / file)
    for row in rows:
        if row.pop("split", "test") == "test":
            row.pop("step", None)  # pruning has none
            yield {"seed": seed} | row


def scaled(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield bytes and seconds of a hypergradient at growing network size."""
    sizes = ((16, 1),) if arguments.smoke else ((64, 2), (128, 4), (256, 6))
    chosen = estimators()
    if arguments.smoke:
        chosen = {"sama": chosen["sama"]}
    for width, depth in sizes:
        network, step = text_encoder_step(width, depth)
        problem = reweighting_problem(network.apply, per_example_weighting())
        params, batches, compiled, runs = step.params, texts(BATCH), {}, {}
        for name, estimator in chosen.items():
            run = jax.jit(functools.partial(estimator.hypergrad, problem))
            inputs = params, jnp.zeros(BATCH), batches, estimator.init(params, None)
            compiled[name] = run.lower(*inputs, inner_step=step).compile()
            runs[name] = functools.partial(compiled[name], *inputs, inner_step=step)
        rounds = 1 if arguments.smoke else ROUNDS
        seconds = median_seconds(runs, rounds, warm_up=True)
        for name, program in compiled.items():
            yield {
                "estimator": name,
                "weights": sum(x.size for x in jax.tree.leaves(params)),
                "mib": round(memory_budget.temporary_bytes(program) / 2**20, 1),
                "seconds": seconds[name],
                "examples_per_second": 2 * BATCH / seconds[name],
            }


def shared_out(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield what devices say to each other in a hypergradient."""
    network, step = text_encoder_step(*((16, 1) if arguments.smoke else (64, 2)))
    weighting = meta_weight_net()
    problem = reweighting_problem(network.apply, weighting)
    meta_params = weighting.init(jax.random.key(1), 0)
    share: dict[str, Any] = {"axis_name": "data"}
    chosen = {
        "SAMA, global vector": hypergrad.sama(OPTIMIZER, **share),
        "SAMA, local vector": hypergrad.sama(OPTIMIZER, vector="local", **share),
        f"CG {STEPS}": hypergrad.conjugate_gradient(STEPS, DAMPING, **share),
        f"Neumann {STEPS}": hypergrad.neumann(STEPS, 1e-3, **share),
    }
    if arguments.smoke:
        chosen = {name: chosen[name] for name in list(chosen)[1::2]}
    for devices in (2,) if arguments.smoke else (1, 2, 4):
        mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
        for name, estimator in chosen.items():
            run = jax.shard_map(
                functools.partial(estimator.hypergrad, problem, inner_step=step),
                mesh=mesh,
                in_specs=(P(), P(), P("data"), P()),
                out_specs=P(),
                check_vma=False,
            )
            inputs = step.params, meta_params, texts(devices * BATCH), ()
            program: Any = jax.jit(run).lower(*inputs).compile()
            sent = collectives(program.as_text(), times_in_loops=STEPS)
            yield {
                "estimator": name,
                "devices": devices,
                "collectives": len(sent),
                "collective_kib": round(sum(sent) / 2**10, 1),
                "mib": round(memory_budget.temporary_bytes(program) / 2**20, 1),
            }


def text_encoder_step(width: int, depth: int) -> tuple[Network, hypergrad.InnerStep]:
    """Return a transformer and a first step of its parameters."""
    network = nn.text_encoder(VOCABULARY, width=width, depth=depth)
    spec = jax.ShapeDtypeStruct((LENGTH,), jnp.int32)
    params = jax.jit(lambda key: network.init(key, spec))(jax.random.key(0))
    return network, hypergrad.InnerStep(params, OPTIMIZER.init(params), params)


def texts(count: int) -> tuple[Any, Any]:
    """Return a training batch, with its rows, and a clean one, of `count` texts."""
    shape = (2, count, LENGTH)
    tokens = jax.random.randint(jax.random.key(1), shape, 1, VOCABULARY)
    labels = jnp.zeros(count, jnp.int32)
    return (tokens[0], labels, jnp.arange(count)), (tokens[1], labels)


def estimators() -> dict[str, hypergrad.Estimator]:
    """Return what is compared at growing size."""
    return {
        "sama": hypergrad.sama(OPTIMIZER),
        "sama, finite differences": hypergrad.sama(
            OPTIMIZER, mixed="finite_difference"
        ),
        "sama, unadapted": hypergrad.identity(),
        f"CG {STEPS}": hypergrad.conjugate_gradient(STEPS, DAMPING),
        f"Neumann {STEPS}": hypergrad.neumann(STEPS, 1e-3),
        f"unrolled {STEPS}": hypergrad.unrolled(STEPS, OPTIMIZER),
        f"unrolled {STEPS}, remat and mixed mode": hypergrad.unrolled(
            STEPS, OPTIMIZER, remat=True, mixed_mode=True
        ),
    }


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "reweight": reweighted,
    "prune": pruned,
    "scale": scaled,
    "devices": shared_out,
}


def tabulate_reweighting(rows: list[Row]) -> list[Row]:
    """Return the mean accuracy over seeds, and each seed's, in %."""
    tests = [r for r in rows if r["part"] == "reweight" and "mean" in r]
    return _over_seeds(tests, "mean", "dataset", "method", "learner")


def tabulate_pruning(rows: list[Row]) -> list[Row]:
    """Return the mean accuracy over networks, and each one's, in %."""
    tests = [r for r in rows if r["part"] == "prune"]
    return _over_seeds(tests, "accuracy", "labels", "rule", "keep")


def _over_seeds(rows: list[Row], value: str, *names: str) -> list[Row]:
    cases: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        cases.setdefault(tuple(row[n] for n in names), []).append(100 * row[value])
    return [
        dict(zip(names, case, strict=True)) | {"accuracy, %": mean_and_each(values)}
        for case, values in cases.items()
    ]


SECTIONS = (
    Section(
        "Noisy labels",
        "sama",
        "python -m experiments.sama",
        "Test accuracy with 40 % of the training labels wrong: ordinary training, and "
        "weights learned on the clean examples.",
        tabulate_reweighting,
    ),
    Section(
        "Pruning",
        "sama",
        "python -m experiments.sama",
        "Test accuracy after training on what a rule keeps of 1000 digits.",
        tabulate_pruning,
    ),
    Section(
        "Hypergradients of growing networks",
        "sama",
        "python -m experiments.sama",
        "One hypergradient of the weights of 16 texts, by a transformer.",
        lambda rows: columns(
            [r for r in rows if r["part"] == "scale"],
            "weights",
            "estimator",
            "mib",
            "seconds",
            "examples_per_second",
        ),
    ),
)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4)
    main()
