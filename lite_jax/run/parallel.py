"""Training on several devices and hosts, parallel over tasks and over examples.

A mesh has two axes. Along `TASKS` each device computes whole tasks of a step, and their
gradients are averaged. Along `EXAMPLES` devices share the chunks of each task. A sum
over support or query is then summed over devices too, forward and backward
(`exact_sum`, `lite_sum` and `episode_grad` take the name of the axis). Random draws
depend on keys only, so a step equals that of one device up to rounding.

Hosts are processes that run the same program (`jax.distributed`). The mesh spans the
devices of all hosts. Each host loads the tasks that its devices compute.
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
    """Join the other processes of a run; call this before any other use of JAX.

    Args:
        where: "auto" under SLURM, Kubernetes, Open MPI and on TPUs, which JAX detects;
            else "ADDRESS:PORT,COUNT,INDEX": the address of process 0, the number of
            processes, and the index of this one, from 0.

    Raises:
        UserError: `where` has another form, or joining the processes failed.
    """
    options: dict[str, Any] = {}
    if where != "auto":
        parts = where.split(",")
        if len(parts) != 3 or ":" not in parts[0] or not _index_fits(*parts[1:]):
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


def _index_fits(count: str, index: str) -> bool:
    return count.isdigit() and index.isdigit() and int(index) < int(count)


def is_main() -> bool:
    """Return whether this is process 0, which writes files and prints."""
    return jax.process_index() == 0


def make_mesh(tasks: int, examples: int) -> Mesh | None:
    """Return the mesh of a run; None for one device.

    Args:
        tasks: Size of the axis `TASKS`.
        examples: Size of the axis `EXAMPLES`.

    Raises:
        UserError: A size under 1, more devices than there are, or fewer than all
            devices of several hosts.
    """
    for name, value in (("tasks", tasks), ("examples", examples)):
        if value < 1:
            raise UserError(f"devices.{name}={value}: expected 1 or more")
    devices, count = jax.devices(), tasks * examples
    hosts = jax.process_count()
    if count > len(devices) or (hosts > 1 and count != len(devices)):
        raise UserError(
            f"devices.tasks={tasks} × devices.examples={examples} is {count} devices, "
            f"and {hosts} host(s) have {len(devices)}: change one of them"
            + (", so that all take part" if hosts > 1 else "")
        )
    if count == 1:
        return None
    return Mesh(np.array(devices[:count]).reshape(tasks, examples), (TASKS, EXAMPLES))


# ------------------------------------------------------------------------ gradients


def mean_over_tasks(
    grad_fn: GradFn, mesh: Mesh | None = None
) -> Callable[[Params, Task, Key], Any]:
    """Return `(params, stacked tasks, key) -> mean of grad_fn's results`.

    Each device computes one task at a time, so memory is that of one task. The key of a
    task does not depend on the number of devices.
    """

    def mean(params: Params, tasks: Task, keys: Key) -> Any:
        count = tasks.query.mask.shape[0]
        first, key = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (tasks, keys)
        )
        shapes = jax.eval_shape(grad_fn, params, first, key)

        def add_task(totals, task_and_key):
            result = grad_fn(params, *task_and_key)
            return jax.tree.map(lambda t, x: t + x / count, totals, result), None

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return lax.scan(add_task, zeros, (tasks, keys))[0]

    def mean_on_all_devices(params: Params, tasks: Task, keys: Key) -> Any:
        return lax.pmean(mean(params, tasks, keys), TASKS)

    # `check_vma=True` would require loops to declare which axes their zeros vary over.
    # Without the check no derivative may pass through a collective; none does, since
    # all collectives are in derivative rules or outside derivatives.
    shared = mesh and jax.shard_map(
        mean_on_all_devices,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(TASKS), PartitionSpec(TASKS)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )

    def mean_of(params: Params, tasks: Task, key: Key) -> Any:
        keys = jax.random.split(key, tasks.query.mask.shape[0])
        return (shared or mean)(params, tasks, keys)

    return mean_of


# ------------------------------------------------------------------ arrays on devices


def replicate(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Return arrays replicated on all devices; they must be equal on all hosts."""
    if mesh is None:
        return jax.device_put(tree)
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def replicated_key(mesh: Mesh | None, seed: int) -> Key:
    """Return the key of a seed, replicated on all devices."""
    sharding = mesh and NamedSharding(mesh, PartitionSpec())
    return jax.jit(jax.random.key, static_argnums=0, out_shardings=sharding)(seed)


def on_this_host(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """Return this host's copy of replicated arrays."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def own_tasks(mesh: Mesh | None, count: int) -> range:
    """Return the indices of those of `count` tasks that this host's devices compute."""
    if mesh is None:
        return range(count)
    sharding = NamedSharding(mesh, PartitionSpec(TASKS))
    slices = sharding.addressable_devices_indices_map((count,)).values()
    ends = [s[0].indices(count)[:2] for s in slices if s is not None]
    return range(min(start for start, _ in ends), max(stop for _, stop in ends))


def place_tasks(mesh: Mesh | None, own: Task, count: int) -> Task:
    """Return `count` stacked tasks, sharded along `TASKS`.

    Args:
        mesh: The mesh of the run.
        own: The tasks of `own_tasks` on this host, stacked.
        count: The number of tasks of all hosts.
    """
    if mesh is None:
        return jax.device_put(own)
    sharding = NamedSharding(mesh, PartitionSpec(TASKS))

    def sharded(x: np.ndarray) -> jax.Array:
        shape = (count, *x.shape[1:])
        return jax.make_array_from_process_local_data(sharding, x, shape)

    return jax.tree.map(sharded, own)


# ---------------------------------------------------------------------------- hosts


def from_main(tree: PyTree) -> PyTree:
    """Return the NumPy arrays of process 0, on every process."""
    if jax.process_count() == 1:
        return tree
    if not is_main():
        tree = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)
    return jax.device_get(multihost_utils.broadcast_one_to_all(tree))


def gather(value: Any) -> list[Any]:
    """Return the values of all processes, in their order; values must fit in JSON."""
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
