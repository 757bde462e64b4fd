"""Several devices and hosts: tasks side by side, the examples of a task shared out.

A mesh has two axes. Along `TASKS` each device computes whole tasks of a step, and their
gradients are averaged. Along `EXAMPLES` devices share out the chunks of each task: a
sum over support or query is then a sum over devices too, forward and backward
(`exact_sum`, `lite_sum` and `episode_grad` take the name of the axis). What is drawn
depends on keys alone, so that a step is that of one device, to rounding.

Hosts are processes that run the same program (`jax.distributed`); the mesh spans all
their devices, and each loads the tasks that its own devices compute.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lite_jax.errors import UserError
from lite_jax.types import GradFn, Key, Params, PyTree, Task

TASKS, EXAMPLES = "tasks", "examples"


def connect(where: str) -> None:
    """Join the other processes of a run; call it before anything else uses JAX.

    Args:
        where: "auto" under SLURM, Kubernetes, Open MPI and on TPUs, which JAX detects;
            else "ADDRESS:PORT,COUNT,INDEX": of process 0, the number of processes, and
            which one this is, from 0.

    Raises:
        UserError: Neither of the two, or no cluster was detected.
    """
    options: dict[str, Any] = {}
    if where != "auto":
        parts = where.split(",")
        if len(parts) != 3 or ":" not in parts[0] or not _are_counts(*parts[1:]):
            raise UserError(
                f"--hosts={where}: expected auto, or ADDRESS:PORT,COUNT,INDEX such as "
                "10.0.0.1:1234,2,0 with INDEX below COUNT"
            )
        count, index = map(int, parts[1:])
        options = dict(coordinator_address=parts[0], num_processes=count)
        options["process_id"] = index
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"--hosts={where}: could not join the other processes ({error}). Give "
            "--hosts=ADDRESS:PORT,COUNT,INDEX where JAX detects no cluster"
        ) from error


def _are_counts(count: str, index: str) -> bool:
    return count.isdigit() and index.isdigit() and int(index) < int(count)


def is_main() -> bool:
    """Say whether this is the process that writes and prints."""
    return jax.process_index() == 0


def make_mesh(tasks: int, examples: int) -> Mesh | None:
    """Return the mesh of a run; None for one device, which needs none.

    Raises:
        UserError: More devices than there are, or hosts that would have nothing to do.
    """
    for name, value in (("tasks", tasks), ("examples", examples)):
        if value < 1:
            raise UserError(f"devices.{name}={value}: expected 1 or more")
    devices, wanted = jax.devices(), tasks * examples
    hosts = jax.process_count()
    if wanted > len(devices) or (hosts > 1 and wanted != len(devices)):
        raise UserError(
            f"devices.tasks={tasks} × devices.examples={examples} is {wanted} devices, "
            f"and {hosts} host(s) have {len(devices)}: change one of them"
            + (", so that all take part" if hosts > 1 else "")
        )
    if wanted == 1:
        return None
    return Mesh(np.array(devices[:wanted]).reshape(tasks, examples), (TASKS, EXAMPLES))


# ------------------------------------------------------------------------ gradients


def mean_over_tasks(
    grad_fn: GradFn, mesh: Mesh | None = None
) -> Callable[[Params, Task, Key], Any]:
    """Return `(params, stacked tasks, key) -> mean of grad_fn's results`.

    One task at a time on each device, so that memory is that of one task. Every task
    has a key of its own, whatever the number of devices.
    """

    def mean(params: Params, tasks: Task, keys: Key) -> Any:
        count = tasks.query.mask.shape[0]
        first, key = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (tasks, keys)
        )
        shapes = jax.eval_shape(grad_fn, params, first, key)

        def add_task(totals, task_and_key):
            found = grad_fn(params, *task_and_key)
            return jax.tree.map(lambda t, x: t + x / count, totals, found), None

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return lax.scan(add_task, zeros, (tasks, keys))[0]

    def on_each(params: Params, tasks: Task, keys: Key) -> Any:
        return lax.pmean(mean(params, tasks, keys), TASKS)

    # Unchecked: with the check, loops would have to declare which axes zeros vary over.
    # Nothing is differentiated through a collective, all of which stand in derivative
    # rules or outside.
    shared = mesh and jax.shard_map(
        on_each,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(TASKS), PartitionSpec(TASKS)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )

    def mean_of(params: Params, tasks: Task, key: Key) -> Any:
        keys = jax.random.split(key, tasks.query.mask.shape[0])
        return (shared or mean)(params, tasks, keys)

    return mean_of


# ------------------------------------------------------------ what lies on which device


def replicate(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Return arrays, equal on all hosts, as arrays that all devices hold."""
    if mesh is None:
        return jax.device_put(tree)
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def replicated_key(mesh: Mesh | None, seed: int) -> Key:
    """Return the key of a seed, on all devices."""
    everywhere = mesh and NamedSharding(mesh, PartitionSpec())
    return jax.jit(jax.random.key, static_argnums=0, out_shardings=everywhere)(seed)


def on_this_host(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Return this host's copy of arrays that all devices hold."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def own_tasks(mesh: Mesh | None, count: int) -> range:
    """Return which of `count` tasks this host's devices compute."""
    if mesh is None:
        return range(count)
    sharding = NamedSharding(mesh, PartitionSpec(TASKS))
    slices = sharding.addressable_devices_indices_map((count,)).values()
    ends = [s[0].indices(count)[:2] for s in slices if s is not None]
    return range(min(start for start, _ in ends), max(stop for _, stop in ends))


def place_tasks(mesh: Mesh | None, own: Task, count: int) -> Task:
    """Return `count` stacked tasks, of which this host holds its `own_tasks`."""
    if mesh is None:
        return jax.device_put(own)
    sharding = NamedSharding(mesh, PartitionSpec(TASKS))

    def place(x: np.ndarray) -> jax.Array:
        shape = (count, *x.shape[1:])
        return jax.make_array_from_process_local_data(sharding, x, shape)

    return jax.tree.map(place, own)


# ---------------------------------------------------------------------------- hosts


def from_main(tree: PyTree) -> PyTree:
    """Return the main process's NumPy arrays on every process."""
    if jax.process_count() == 1:
        return tree
    if not is_main():
        tree = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)
    return jax.device_get(multihost_utils.broadcast_one_to_all(tree))


def gather(value: Any) -> list[Any]:
    """Return every process's value, which JSON can hold, in the order of processes."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: text.size] = text
    rows = multihost_utils.process_allgather(padded)
    return [
        json.loads(bytes(row[:size]).decode())
        for row, size in zip(rows, sizes, strict=True)
    ]
