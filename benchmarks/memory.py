"""Memory of one ProtoNets gradient against support size, image size, H and chunks.

    python -m benchmarks.memory [--smoke] [--full]
        [--out=experiments/results/memory.jsonl]

Conv-4, 16 query images, H = 16 and chunks of 16 unless a row says otherwise. Part
"compiled" is compile-only: XLA says what the program will need besides its inputs and
outputs, nothing runs, so that N = 1024 under plain differentiation needs no machine
that could hold it (on CPU the figures leave out the scratch space of convolutions).
Part "measured" runs the gradient: on CPU in a process of its own, whose peak resident
memory beyond that before the gradient is the figure; on a GPU by its allocator's peak.
`--full` adds 224-pixel images.

The paper's schedule (Algorithm 1) is that of the paper: for every batch of queries, the
complement is encoded again without gradient, and H examples at once with it.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from experiments.operators import Operator
from experiments.rows import emit, parser
from experiments.sections import Row, Section, legend_below, panels
from lite_jax import (
    Examples,
    SetSum,
    Task,
    episode_loss,
    exact_sum,
    lite_sum,
    nn,
    protonets,
)
from lite_jax.run import memory_budget
from lite_jax.types import Key, Params

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHUNK, NUM_BACKPROP, WAY, SIZE, NUM_QUERY = 16, 16, 16, 84, 16
SMOKE_SIZE = 16
PLAIN, REMAT, EXACT = "plain jax.grad", "jax.checkpoint", "exact, chunked"
LITE, PAPER = "lite", "paper's schedule"
OPERATORS = (PLAIN, REMAT, EXACT, LITE, PAPER)
Gradient = Callable[[Params, Task, Key], Params]


def make_gradient(
    operator: str, num_backprop: int = NUM_BACKPROP, chunk_size: int = CHUNK
) -> Gradient:
    """Return the gradient of a task's loss by one of OPERATORS."""
    learner = protonets(nn.conv4(remat=operator == REMAT), way=WAY)
    loss_fn = episode_loss(learner, query_chunk_size=chunk_size)

    def gradient_by(set_sum: SetSum) -> Gradient:
        gradient = jax.grad(functools.partial(loss_fn, set_sum=set_sum), has_aux=True)
        return lambda *args: gradient(*args)[0]

    if operator == PAPER:
        by_batch = gradient_by(paper_sum(num_backprop, chunk_size))
        return functools.partial(over_query_batches, by_batch, chunk_size)
    if operator == LITE:
        return gradient_by(lite_sum(num_backprop, chunk_size))
    return gradient_by(exact_sum(chunk_size if operator == EXACT else None))


def paper_sum(num_backprop: int, chunk_size: int) -> SetSum:
    """Return the paper's operator: exact value, H examples with their residuals."""

    def split(examples, key, mask):
        order = jax.random.permutation(key, mask.size)
        parts = order[:num_backprop], order[num_backprop:]
        return parts, [jax.tree.map(lambda x, p=p: x[p], examples) for p in parts]

    def scaled(total, factor):
        return jax.tree.map(
            lambda t: factor * t - lax.stop_gradient((factor - 1) * t), total
        )

    def set_sum(additive, args, examples, key, mask):
        _, (drawn, rest) = split(examples, key, mask)
        total = additive(args, drawn, jnp.ones(num_backprop))
        if num_backprop < mask.size:
            in_chunks, kept = exact_sum(chunk_size), lax.stop_gradient(args)
            others = in_chunks(additive, kept, rest, None)
            total = jax.tree.map(jnp.add, total, others)
        return scaled(total, mask.size / num_backprop)

    def set_map(encode, args, examples, key, mask):
        (places, _), (drawn, _) = split(examples, key, mask)
        kept = lax.stop_gradient(args)
        table = exact_sum(chunk_size).map(encode, kept, examples, None, mask)
        rows = scaled(encode(args, drawn), mask.size / num_backprop)
        return jax.tree.map(lambda t, x: t.at[places].set(x), table, rows)

    return Operator(set_sum, set_map)


def over_query_batches(
    gradient: Gradient, size: int, params: Params, task: Task, key: Key
) -> Params:
    """Return the mean gradient over batches of queries, one after the other."""
    count = task.query.mask.size // size
    batches = jax.tree.map(lambda x: x.reshape(count, size, *x.shape[1:]), task.query)

    def add(total: Params, batch_and_key: Any) -> tuple[Params, None]:
        batch, key = batch_and_key
        found = gradient(params, Task(task.support, batch), key)
        return jax.tree.map(lambda t, g: t + g / count, total, found), None

    first = jax.tree.map(lambda x: x[0], batches)
    like = jax.eval_shape(gradient, params, Task(task.support, first), key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return lax.scan(add, zeros, (batches, jax.random.split(key, count)))[0]


@functools.cache
def temporary_bytes(
    operator: str,
    num_support: int,
    size: int = SIZE,
    num_backprop: int = NUM_BACKPROP,
    chunk_size: int = CHUNK,
) -> int:
    """Return the bytes that the compiled gradient needs besides inputs and outputs."""
    gradient = make_gradient(operator, num_backprop, chunk_size)
    inputs = jax.eval_shape(lambda: make_inputs(num_support, size))
    return memory_budget.temporary_bytes(jax.jit(gradient).lower(*inputs).compile())


def make_inputs(num_support: int, size: int) -> tuple[Params, Task, Key]:
    """Return parameters, a task of grey images and a key."""
    image = jax.ShapeDtypeStruct((size, size, 3), jnp.uint8)
    params = protonets(nn.conv4(), way=WAY).init(jax.random.key(0), image)

    def examples(count: int) -> Examples:
        images = jnp.full((count, size, size, 3), 128, jnp.uint8)
        labels = jnp.arange(count, dtype=jnp.int32) % WAY
        return Examples(images, labels, jnp.ones(count, bool))

    return params, Task(examples(num_support), examples(NUM_QUERY)), jax.random.key(0)


def measured_bytes(operator: str, num_support: int, size: int) -> int:
    """Return the peak memory of running the gradient once, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--measure"]
    case = json.dumps([operator, num_support, size])
    found = subprocess.run(
        [*command, case], stdout=subprocess.PIPE, text=True, check=True
    )
    return int(found.stdout)


def measure(operator: str, num_support: int, size: int) -> int:
    """Run the gradient once here, and return what it added to the peak of memory."""
    inputs = jax.block_until_ready(make_inputs(num_support, size))
    gradient = jax.jit(make_gradient(operator)).lower(*inputs).compile()
    before = _peak_bytes()
    jax.block_until_ready(gradient(*inputs))
    return _peak_bytes() - before


def _peak_bytes() -> int:
    statistics = jax.local_devices()[0].memory_stats()
    if statistics:
        return statistics["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compiled_cases(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the cases of which the compiler is asked."""
    if arguments.smoke:
        for operator in OPERATORS:
            yield {"operator": operator, "num_support": 32, "size": SMOKE_SIZE}
        return
    for operator in OPERATORS:
        for num_support in (64, 256, 1024):
            yield {"operator": operator, "num_support": num_support}
    for size in (128, 224) if arguments.full else (128,):
        for operator in OPERATORS:
            yield {"operator": operator, "num_support": 256, "size": size}
    for size in (4, 64):
        yield {"operator": EXACT, "num_support": 256, "chunk_size": size}
        yield {"operator": LITE, "num_support": 256, "chunk_size": size}
    for operator in (LITE, PAPER):
        for num_backprop in (4, 64):
            case = {"operator": operator, "num_support": 256}
            yield case | {"num_backprop": num_backprop}


def main(argv: Sequence[str] | None = None) -> None:
    """Emit a row for each case, compiled and measured."""
    found = parser("memory of a gradient")
    found.add_argument("--full", action="store_true", help="224-pixel images too")
    found.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    arguments = found.parse_args(argv)
    if arguments.measure:
        print(measure(*arguments.measure))
        return
    fixed = {"size": SIZE, "num_backprop": NUM_BACKPROP, "chunk_size": CHUNK}
    for case in compiled_cases(arguments):
        found_bytes = temporary_bytes(**case)
        _emit(arguments, "compiled", fixed | case, found_bytes)
    size = SMOKE_SIZE if arguments.smoke else SIZE
    for operator in (LITE,) if arguments.smoke else OPERATORS:
        for num_support in (32,) if arguments.smoke else (64, 256):
            case = {"operator": operator, "num_support": num_support, "size": size}
            _emit(arguments, "measured", fixed | case, measured_bytes(**case))


def _emit(
    arguments: argparse.Namespace, part: str, case: dict[str, Any], found: int
) -> None:
    mib = round(found / 2**20, 1)
    row = {"experiment": "memory", "part": part, "mib": mib}
    emit(arguments.out, row | dict(sorted(case.items())))


def draw_memory(rows: list[Row]) -> Figure:
    """Draw memory against the number of support images."""
    titles = {"compiled": "as compiled: temporaries", "measured": "as run: added peak"}
    titles = {k: v for k, v in titles.items() if any(r["part"] == k for r in rows)}
    figure, axes = panels(len(titles))
    for axis, (part, title) in zip(axes, titles.items(), strict=True):
        cases = [
            r
            for r in rows
            if r.get("part") == part
            and (r["size"], r["num_backprop"], r["chunk_size"]) == (84, 16, 16)
        ]
        for name, marker in zip(
            dict.fromkeys(r["operator"] for r in cases), "osxD^", strict=False
        ):
            curve = [r for r in cases if r["operator"] == name]
            axis.plot(
                [r["num_support"] for r in curve], [r["mib"] for r in curve],
                marker=marker, markersize=5, fillstyle="none", alpha=0.8, label=name,
            )  # fmt: skip
        axis.set(xscale="log", yscale="log", title=title)
        axis.set_xlabel("support images N (84 px, H = 16)")
    axes[0].set_ylabel("MiB")
    legend_below(figure, axes, 3)
    return figure


SECTIONS = (
    Section(
        "Memory",
        "memory",
        "python -m benchmarks.memory",
        "One ProtoNets gradient, Conv-4.",
        draw=draw_memory,
    ),
)


if __name__ == "__main__":
    main()
