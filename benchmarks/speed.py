"""Speed and memory of one meta-training gradient, side by side, against the floor.

    python -m benchmarks.speed [--smoke] [--large] [--learner=protonets]
        [--backbone=resnet18] [--sizes=100,40,10,84] [--rounds=5]
        [--out=experiments/results/speed.jsonl]

One task of N support and M query images, H back-propagated; parameters at random,
batch normalisation with frozen statistics, chunks of 20 (40 with `--large`). Methods:

- plain: everything kept; jax.checkpoint: boundaries of blocks kept
- exact, chunked: all N back-propagated, a chunk at a time
- lite, and on a GPU the same with bfloat16 products
- paper's schedule: Algorithm 1 on our networks, H drawn and the support encoded anew
  for every batch of at most 50 queries
- PyTorch, eager and compiled (extra `torch`): Algorithm 1; with "cached", features
  that need no gradient are kept from one batch of queries to the next, as published
  code does

The floor is (N + 2 H + 3 M) forward passes of the backbone (and of the set encoder,
N + 2 H) at their fastest chunk size, measured in the same run. Seconds are medians over
rounds, in each of which every method runs once. `--large` is for a GPU. What does not
fit the memory is left out.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.memory import over_query_batches, paper_sum
from benchmarks.timing import median_seconds
from experiments.rows import emit, parser
from experiments.sections import Row, Section, panels
from lite_jax import (
    Examples,
    Learner,
    Network,
    Task,
    episode_grad,
    exact_sum,
    lite_sum,
    nn,
    protonets,
    simple_cnaps,
)
from lite_jax.run import memory_budget
from lite_jax.types import Params

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WAY, MOST_QUERIES = 10, 50
CPU_SIZES = [(100, 40, 10, 84), (500, 200, 40, 84)]
GPU_SIZES = [(500, 500, 40, 224), (1000, 500, 40, 224)]
BACKBONES: dict[str, Callable[..., Network]] = {
    "resnet18": nn.resnet18,
    "efficientnet_b0": nn.efficientnet_b0,
}
LEARNERS: dict[str, Callable[..., Learner]] = {
    "protonets": protonets,
    "simple_cnaps": simple_cnaps,
}


class Sizes(NamedTuple):
    """N, M, H and pixels a side."""

    num_support: int
    num_query: int
    num_backprop: int
    pixels: int


class Method(NamedTuple):
    """Something to time.

    Attributes:
        run: Takes one step, and waits for it.
        facts: What is known besides the time, for the row.
    """

    run: Callable[[], Any]
    facts: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Emit a row for each learner, backbone, size and method."""
    found = parser("speed and memory of one gradient")
    found.add_argument("--learner", choices=LEARNERS, help="one only")
    found.add_argument("--backbone", choices=BACKBONES, help="one only")
    found.add_argument("--sizes", help="N,M,H,pixels: one only")
    found.add_argument("--large", action="store_true", help="the sizes of a GPU")
    found.add_argument("--rounds", type=int, default=5)
    arguments = found.parse_args(argv)
    sizes = [Sizes(*s) for s in (GPU_SIZES if arguments.large else CPU_SIZES)]
    if arguments.sizes:
        sizes = [Sizes(*map(int, arguments.sizes.split(",")))]
    backbones = [arguments.backbone] if arguments.backbone else list(BACKBONES)
    learners = [arguments.learner] if arguments.learner else list(LEARNERS)
    if arguments.smoke:
        sizes, arguments.rounds = [Sizes(12, 10, 4, 16)], 1
        backbones, learners = backbones[:1], learners[:1]
    for learner in learners:
        for backbone in backbones:
            for size in sizes:
                for row in compared(learner, backbone, size, arguments):
                    emit(arguments.out, {"experiment": "speed"} | row)


def compared(
    learner: str, backbone: str, size: Sizes, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield a row for each method, all timed in the same rounds."""
    task = make_task(size)
    chunk = 40 if arguments.large else 20
    named = dict(methods(learner, backbone, size, task, chunk))
    if not arguments.smoke:
        named |= torch_methods(learner, backbone, size, task, chunk)
    floor = passes(
        learner, backbone, size, (chunk,) if arguments.smoke else (10, 20, 50)
    )
    runs = {name: method.run for name, method in (named | floor).items()}
    median = median_seconds(runs, arguments.rounds)
    least = floor_seconds(learner, size, {name: median[name] for name in floor})
    for name, method in named.items():
        yield {
            "learner": learner,
            "backbone": backbone,
            **size._asdict(),
            "chunk_size": chunk,
            "method": name,
            "seconds": round(median[name], 4),
            "tasks_per_second": round(1 / median[name], 4),
            "times_floor": round(median[name] / least, 3),
            "times_lite": round(median[name] / median["lite"], 3),
            "rounds": arguments.rounds,
            **method.facts,
        }


def make_task(size: Sizes) -> Task:
    """Return a task of random images."""
    rng = np.random.default_rng(0)

    def examples(count: int) -> Examples:
        shape = (count, size.pixels, size.pixels, 3)
        images = rng.integers(0, 256, shape, np.uint8)
        labels = np.arange(count, dtype=np.int32) % WAY
        return Examples(images, labels, np.ones(count, bool))

    return Task(examples(size.num_support), examples(size.num_query))


def query_batch(size: Sizes) -> int:
    """Return the largest equal part of the queries of at most MOST_QUERIES."""
    sizes = range(1, MOST_QUERIES + 1)
    return max(n for n in sizes if size.num_query % n == 0)


# ------------------------------------------------------------------------------ ours


def methods(
    learner: str, backbone: str, size: Sizes, task: Task, chunk: int
) -> Iterator[tuple[str, Method]]:
    """Yield our methods by name, compiled."""
    on_gpu = jax.default_backend() == "gpu"
    make, make_backbone = LEARNERS[learner], BACKBONES[backbone]
    network = make_backbone(norm="batch")
    own = make(network, way=WAY)
    image = jax.ShapeDtypeStruct((size.pixels, size.pixels, 3), jnp.uint8)
    params = jax.jit(lambda key: own.init(key, image))(jax.random.key(0))
    inputs = params, jax.device_put(task), jax.random.key(1)
    lite = lite_sum(size.num_backprop, chunk)
    in_chunks: dict[str, Any] = {"query_chunk_size": chunk}

    def paper(params: Params, task: Task, key: Any) -> Any:
        by_batch = episode_grad(own, paper_sum(size.num_backprop, chunk))
        return over_query_batches(
            lambda *args: by_batch(*args)[1], query_batch(size), params, task, key
        )

    remat = make(make_backbone(norm="batch", remat=True), way=WAY)
    functions = {
        "plain": episode_grad(own, exact_sum()),
        "jax.checkpoint": episode_grad(remat, exact_sum()),
        "exact, chunked": episode_grad(own, exact_sum(chunk), **in_chunks),
        "lite": episode_grad(own, lite, **in_chunks),
        "paper's schedule": paper,
    }
    if on_gpu:
        low = make(nn.in_bfloat16(network), way=WAY)
        functions["lite, bfloat16"] = episode_grad(low, lite, **in_chunks)
    for name, function in functions.items():
        method = _compiled(function, inputs)
        if method is None:
            print(f"{name}: does not fit", flush=True)
        else:
            yield name, method


def _compiled(function: Callable[..., Any], inputs: Any) -> Method | None:
    """Return a method that has run once; None where it does not fit the memory."""
    start = time.perf_counter()
    try:
        program: Any = jax.jit(function).lower(*inputs).compile()
        facts = {
            "compile_seconds": round(time.perf_counter() - start, 1),
            "program_mib": round(memory_budget.program_bytes(program) / 2**20),
            "temporary_mib": round(memory_budget.temporary_bytes(program) / 2**20),
        }
        on_cpu = jax.default_backend() == "cpu"  # which would be killed, not told
        if on_cpu and memory_budget.program_bytes(program) > host_bytes():
            return None
        run = _waiting(program, inputs)
        run()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
    return Method(run, facts)


def host_bytes() -> int:
    """Return the bytes of the machine's memory that nothing uses now."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _waiting(program: Any, inputs: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(program(*inputs))


# ----------------------------------------------------------------------------- floor


def passes(
    learner: str, backbone: str, size: Sizes, chunks: tuple[int, ...]
) -> dict[str, Method]:
    """Return forward passes of one chunk, of each network and chunk size."""
    networks = {"backbone": BACKBONES[backbone](norm="batch")}
    if learner == "simple_cnaps":
        networks["set_encoder"] = nn.set_encoder()
    found = {}
    image = jax.ShapeDtypeStruct((size.pixels, size.pixels, 3), jnp.uint8)
    for name, network in networks.items():
        params = jax.jit(lambda key, n=network: n.init(key, image))(jax.random.key(0))
        for chunk in chunks:
            images = jnp.asarray(make_task(size).support.inputs[:chunk])
            program = jax.jit(network.apply).lower(params, images).compile()
            run = _waiting(program, (params, images))
            run()
            found[f"{name}/{len(images)}"] = Method(run, {})
    return found


def floor_seconds(learner: str, size: Sizes, seconds: dict[str, float]) -> float:
    """Return the time of the forward passes that no gradient can do without."""
    best: dict[str, float] = {}
    for name, value in seconds.items():
        network, count = name.split("/")
        best[network] = min(best.get(network, np.inf), value / int(count))
    support = size.num_support + 2 * size.num_backprop
    total = best["backbone"] * (support + 3 * size.num_query)
    return total + (best["set_encoder"] * support if "set_encoder" in best else 0)


# --------------------------------------------------------------------------- PyTorch


def torch_methods(
    learner: str, backbone: str, size: Sizes, task: Task, chunk: int
) -> dict[str, Method]:
    """Return Algorithm 1 in PyTorch, where it is installed."""
    if not all(map(importlib.util.find_spec, ("torch", "timm"))):
        print("torch or timm is not installed: pip install -e '.[torch]'", flush=True)
        return {}
    ours = importlib.import_module("benchmarks.torch_lite")
    torch = importlib.import_module("torch")
    found = {}
    for name, compiled, cached in (
        ("PyTorch, eager", False, False),
        ("PyTorch, eager, cached", False, True),
        ("PyTorch, compiled", True, False),
        ("PyTorch, compiled, cached", True, True),
    ):
        gradient = ours.make_gradient(
            learner,
            backbone,
            task,
            way=WAY,
            num_backprop=size.num_backprop,
            chunk_size=chunk,
            query_batch=query_batch(size),
            cached=cached,
            compiled=compiled,
        )

        def run(gradient: Callable[[], None] = gradient) -> None:
            gradient()
            if torch.cuda.is_available():
                torch.cuda.synchronize()

        start = time.perf_counter()
        run()
        facts = {"torch": torch.__version__}
        if compiled:
            facts["compile_seconds"] = round(time.perf_counter() - start, 1)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            run()
            facts["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
        found[name] = Method(run, facts)
    return found


# -------------------------------------------------------------------------- section


def draw_seconds(rows: list[Row]) -> Figure:
    """Draw seconds of a step as bars, a panel for each task and network."""
    cases = list(
        dict.fromkeys((r["learner"], r["backbone"], r["num_support"]) for r in rows)
    )
    names = list(dict.fromkeys(r["method"] for r in rows))[::-1]
    figure, axes = panels(len(cases))
    for axis, case in zip(axes, cases, strict=True):
        seconds = {
            r["method"]: r["seconds"]
            for r in rows
            if (r["learner"], r["backbone"], r["num_support"]) == case
        }
        places = [i for i, name in enumerate(names) if name in seconds]
        colors = ["#4477aa" if names[i] == "lite" else "#bbbbbb" for i in places]
        axis.barh(places, [seconds[names[i]] for i in places], color=colors)
        axis.set(title=f"{case[0]}, N = {case[2]}\n{case[1]}", xlabel="seconds a step")
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [])
    return figure


SECTIONS = (
    Section(
        "Speed",
        "speed",
        "python -m benchmarks.speed",
        "One gradient beside the floor, (N + 2 H + 3 M) forward passes, and beside "
        "PyTorch; medians of rounds in which every method ran once.",
        draw=draw_seconds,
    ),
)


if __name__ == "__main__":
    main()
