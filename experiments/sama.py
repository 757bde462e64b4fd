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
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from experiments.rows import emit, parser
from experiments.scaling import collectives
from lite_jax import hypergrad, nn
from lite_jax.metrics import read_rows
from lite_jax.reweight import (
    meta_weight_net,
    per_example,
    reweighting_problem,
    run_reweighting,
)

Row = dict[str, Any]
ROUNDS = 5


def main() -> None:
    """Emit the rows of every part."""
    found = parser("learned weights of training examples")
    found.add_argument("--seeds", type=int, default=3)
    found.add_argument("--only", choices=PARTS, help="one part")
    arguments = found.parse_args()
    jax.config.update("jax_num_cpu_devices", 4)
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            for row in part(arguments):
                emit(arguments.out, {"experiment": "sama", "part": name} | row)


def reweighted(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield test accuracies by data set, weighting and estimator."""
    digits = ("", "unadapted", "per_example", "cg", "neumann")
    cases = [("digits", method) for method in digits]
    cases += [("text", method) for method in digits[:2]]  # each takes minutes
    for data, method in cases[:1] if arguments.smoke else cases:
        for seed in range(arguments.seeds if not arguments.smoke else 1):
            for row in _run("sama_reweight", [data, method], seed, arguments.smoke):
                yield {"dataset": data, "method": method or "sama"} | row


def pruned(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the mean test accuracy over seeds by rule and share kept."""
    for noise in ("",) if arguments.smoke else ("", "noisy"):
        names = ["digits", noise]
        for row in _run("sama_prune", names, 0, arguments.smoke, "pruning.jsonl"):
            yield {"labels": noise or "as they are"} | row


def _run(
    job: str, names: list[str], seed: int, smoke: bool, file: str = "metrics.jsonl"
) -> Iterator[Row]:
    """Yield the results of a run."""
    names = [x for x in [*names, "smoke" if smoke else ""] if x]
    module = importlib.import_module(f"configs.{job}")
    config = module.get_config(",".join(names))
    with config.unlocked():
        config.seed = seed
    with tempfile.TemporaryDirectory() as folder:
        run_reweighting(config, Path(folder))
        rows = read_rows(Path(folder) / file)
    for row in rows:
        if row.pop("split", "test") == "test":
            rounded = {k: _rounded(v) for k, v in row.items() if k != "step"}
            yield {"seed": seed} | rounded


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def scaled(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield bytes and seconds of a hypergradient at growing network size."""
    batch, length = 16, 32
    sizes = ((32, 1),) if arguments.smoke else ((64, 2), (128, 4), (256, 6))
    for width, depth in sizes:
        network = nn.text_encoder(1000, width=width, depth=depth)
        spec = jax.ShapeDtypeStruct((length,), jnp.int32)
        params = network.init(jax.random.key(0), spec)
        optimizer = optax.adam(1e-3)
        problem = reweighting_problem(network.apply, per_example())
        tokens = jax.random.randint(jax.random.key(1), (2, batch, length), 1, 1000)
        labels, rows = jnp.zeros(batch, jnp.int32), jnp.arange(batch)
        batches = (tokens[0], labels, rows), (tokens[1], labels)
        step = hypergrad.InnerStep(params, optimizer.init(params), params)
        runs = {}
        for name, estimator in estimators(optimizer).items():
            run = jax.jit(functools.partial(estimator.hypergrad, problem))
            inputs = params, jnp.zeros(batch), batches, estimator.init(params, None)
            compiled = run.lower(*inputs, inner_step=step).compile()
            memory = compiled.memory_analysis()
            assert memory is not None
            bound = functools.partial(compiled, *inputs, inner_step=step)
            runs[name] = bound, memory.temp_size_in_bytes
        seconds = _seconds({name: run for name, (run, _) in runs.items()})
        size = sum(x.size for x in jax.tree.leaves(params))
        for name, (_, num_bytes) in runs.items():
            yield {
                "estimator": name,
                "weights": size,
                "mib": round(num_bytes / 2**20, 1),
                "seconds": _rounded(seconds[name]),
                "examples_per_second": _rounded(2 * batch / seconds[name]),
            }


def shared_out(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield what devices say to each other in a hypergradient."""
    batch, length, steps = 16, 32, 5
    network, optimizer = nn.text_encoder(1000, width=64, depth=2), optax.adam(1e-3)
    spec = jax.ShapeDtypeStruct((length,), jnp.int32)
    params = network.init(jax.random.key(0), spec)
    weighting = meta_weight_net()
    problem = reweighting_problem(network.apply, weighting)
    meta_params = weighting.init(jax.random.key(1), 0)
    step = hypergrad.InnerStep(params, optimizer.init(params), params)
    chosen = {
        "SAMA, global vector": hypergrad.sama(optimizer, axis_name="data"),
        "SAMA, local vector": hypergrad.sama(
            optimizer, axis_name="data", vector="local"
        ),
        f"CG {steps}": hypergrad.conjugate_gradient(steps, 300.0, axis_name="data"),
        f"Neumann {steps}": hypergrad.neumann(steps, 1e-3, axis_name="data"),
    }
    for devices in (1, 2) if arguments.smoke else (1, 2, 4):
        mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
        tokens = jnp.ones((devices * batch, length), jnp.int32)
        labels, rows = jnp.zeros(len(tokens), jnp.int32), jnp.arange(len(tokens))
        batches = (tokens, labels, rows), (tokens, labels)
        for name, estimator in chosen.items():
            run = jax.shard_map(
                functools.partial(estimator.hypergrad, problem, inner_step=step),
                mesh=mesh,
                in_specs=(P(), P(), P("data"), P()),
                out_specs=P(),
                check_vma=False,
            )
            lowered = jax.jit(run).lower(params, meta_params, batches, ())
            program: Any = lowered.compile()
            sent = collectives(program.as_text(), times_in_loops=steps)
            memory = program.memory_analysis()
            yield {
                "estimator": name,
                "devices": devices,
                "collectives": len(sent),
                "collective_kib": round(sum(sent) / 2**10, 1),
                "mib": round(memory.temp_size_in_bytes / 2**20, 1),
            }


def estimators(
    optimizer: optax.GradientTransformation,
) -> dict[str, hypergrad.Estimator]:
    """Return what is compared."""
    by_differences = hypergrad.sama(optimizer, mixed="finite_difference")
    return {
        "sama": hypergrad.sama(optimizer),
        "sama, finite differences": by_differences,
        "sama, unadapted": hypergrad.identity(),
        "CG 5": hypergrad.conjugate_gradient(5, 300.0),
        "Neumann 5": hypergrad.neumann(5, 1e-3),
        "unrolled 5": hypergrad.unrolled(5, optimizer),
        "unrolled 5, remat and mixed mode": hypergrad.unrolled(
            5, optimizer, remat=True, mixed_mode=True
        ),
    }


def _seconds(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the median seconds of each, taken in turns."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(x[1:]) for name, x in taken.items()}


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "reweight": reweighted,
    "prune": pruned,
    "scale": scaled,
    "devices": shared_out,
}


if __name__ == "__main__":
    main()
