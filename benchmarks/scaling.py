"""What devices say to each other in a step, as the compiler has it: weak scaling.

    python -m benchmarks.scaling [--smoke] [--out=experiments/results/scaling.jsonl]

ProtoNets on Conv-4 at 84 pixels, LITE with H = 16 of every task's N, chunks of 16, on
1, 2, 4 and 8 devices that the host is made to show. "tasks": one more task for each
device, N = 128. "examples": one task, of 128 support images for each device. A row
tells how many collectives the compiled step has, the bytes that a device puts into
them, and the temporary bytes of a device. Host devices share the cores, so no time is
told.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from experiments.rows import emit, parser
from experiments.sections import Section
from lite_jax import Examples, Task, episode_grad, lite_sum, nn, protonets
from lite_jax.run import memory_budget, parallel
from lite_jax.run.train import init_state, make_train_step

WAY, SIZE, CHUNK, NUM_SUPPORT, NUM_QUERY = 16, 84, 16, 128, 32
_BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}


def main(argv: Sequence[str] | None = None) -> None:
    """Emit a row for each axis and number of devices."""
    arguments = parser("collectives of a step").parse_args(argv)
    for axis in (parallel.TASKS, parallel.EXAMPLES):
        smallest = (1, 2) if axis == parallel.TASKS else (2,)
        for devices in smallest if arguments.smoke else (1, 2, 4, 8):
            row = {"experiment": "scaling", "axis": axis, "devices": devices}
            emit(arguments.out, row | told(axis, devices))


def told(axis: str, devices: int) -> dict[str, Any]:
    """Return what the compiler says of the step on so many devices."""
    by_tasks = axis == parallel.TASKS
    mesh = parallel.make_mesh(*((devices, 1) if by_tasks else (1, devices)))
    shared = parallel.EXAMPLES if mesh and not by_tasks else None
    learner = protonets(nn.conv4(), way=WAY)
    grad_fn = episode_grad(
        learner,
        lite_sum(CHUNK, CHUNK, axis_name=shared),
        query_chunk_size=CHUNK,
        axis_name=shared,
    )
    optimizer = optax.adam(1e-3)
    count, each = (devices, NUM_SUPPORT) if by_tasks else (1, devices * NUM_SUPPORT)
    inputs = step_inputs(learner, optimizer, mesh, count, each)
    step = make_train_step(grad_fn, optimizer, mesh)
    program: Any = step.lower(*inputs).compile()
    sent = collectives(program.as_text())
    return {
        "tasks": count,
        "num_support": each,
        "collectives": len(sent),
        "collective_kib": round(sum(sent) / 2**10, 1),
        "temporary_mib": round(memory_budget.temporary_bytes(program) / 2**20, 1),
    }


def step_inputs(
    learner: Any, optimizer: Any, mesh: Mesh | None, count: int, num_support: int
) -> tuple[Any, Task, Any]:
    """Return state, tasks and key of a step, on the devices of a mesh."""
    image = jax.ShapeDtypeStruct((SIZE, SIZE, 3), jnp.uint8)
    params = jax.jit(lambda key: learner.init(key, image))(jax.random.key(0))
    state = parallel.replicate(mesh, init_state(optimizer, params))

    def examples(size: int) -> Examples:
        images = jnp.full((count, size, *image.shape), 128, jnp.uint8)
        labels = jnp.broadcast_to(
            jnp.arange(size, dtype=jnp.int32) % WAY, (count, size)
        )
        return Examples(images, labels, jnp.ones((count, size), bool))

    tasks = jax.device_get(Task(examples(num_support), examples(NUM_QUERY)))
    placed = parallel.place_tasks(mesh, tasks, count)
    return state, placed, parallel.replicated_key(mesh, 0)


def collectives(text: str, times_in_loops: int = 1) -> list[int]:
    """Return the bytes of each collective of a program, as XLA prints it.

    Those of a loop's body stand there as often as loops are said to run.
    """
    found, bodies, times = [], set(re.findall(r"body=%([\w.\-]+)", text)), 1
    for line in text.splitlines():
        opening = re.match(r"(?:ENTRY )?%([\w.\-]+) \(.*\{$", line)
        if opening:
            times = times_in_loops if opening.group(1) in bodies else 1
        match = re.search(
            r"= (.*?) (all-reduce|all-gather|all-to-all)(-start)?\(", line
        )
        if match:
            arrays = re.findall(r"(\w+)\[([\d,]*)\]", match.group(1))
            found += times * [sum(_size(*array) for array in arrays)]
    return found


def _size(dtype: str, shape: str) -> int:
    size = _BYTES[dtype]
    for side in filter(None, shape.split(",")):
        size *= int(side)
    return size


SECTIONS = (
    Section(
        "Many devices",
        "scaling",
        "python -m benchmarks.scaling",
        "Collectives of a compiled step, as tasks or examples grow with the devices.",
    ),
)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main()
