"""Export of a plan and its network to one file, which `lite_jax.pmeta.device` reads."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from lite_jax.files import exported, named_leaves, shapes_of, write_artefact
from lite_jax.pmeta.choice import Choice
from lite_jax.pmeta.device import FORMAT
from lite_jax.pmeta.memory_model import MB, count_macs, count_memory
from lite_jax.pmeta.plan import Plan, batch_logits, inner_params, make_step
from lite_jax.types import Params


def export_plan(
    path: Path,
    plan: Plan,
    params: Params,
    *,
    dtype: Any = jnp.uint8,
    batch_size: int = 1,
    platforms: Sequence[str] | None = None,
) -> dict[str, int]:
    """Write a plan and its network to a file, and return the bytes of each part.

    The programs take supports and queries whose size is any multiple of `batch_size`.
    Steps that train the same layers share a program.

    Args:
        path: The file. It is written whole or not at all.
        plan: The plan.
        params: The learner's parameters.
        dtype: Dtype of the input images.
        batch_size: Examples computed at once while adapting.
        platforms: Platforms of the programs, as for `jax.export.export`, such as
            `("cpu", "cuda")`; by default the platform that runs this function.

    Raises:
        UserError: An invalid plan.
    """
    plan.check()
    inner, modules = inner_params(plan.architecture, params)
    named, structure = named_leaves({"inner": inner, "modules": modules})
    shape = (*plan.architecture.blocks[0].inputs,)

    def restored(weights: dict[str, Any]) -> Any:
        return jax.tree.unflatten(structure, [weights[name] for name in named])

    def predict(weights: dict[str, Any], inputs: jax.Array) -> jax.Array:
        tree, choice = restored(weights), plan.choices()[0]
        inner_and_modules = tree["inner"], tree["modules"]
        return batch_logits(plan.architecture, choice, {}, *inner_and_modules, inputs)

    spec = shapes_of(named)
    (count,) = export.symbolic_shape("n", constraints=("n >= 1",))
    if batch_size > 1:
        count = batch_size * count
    inputs = jax.ShapeDtypeStruct((count, *shape), dtype)
    labels = jax.ShapeDtypeStruct((count,), jnp.int32)
    make = functools.partial(exported, platforms=platforms)
    parts = {"predict": make(predict, spec, inputs)}
    steps: list[dict[str, Any]] = []
    programs: dict[Choice, str] = {}
    for sizes, choice in zip(plan.steps, plan.choices(), strict=True):
        if sizes and choice not in programs:
            programs[choice] = f"step{len(programs)}"
            step = make_step(plan, choice, batch_size)

            def changed(
                weights: dict[str, Any], sizes: Any, inputs: Any, labels: Any,
                step: Any = step, trained: Any = choice.trained,
            ) -> dict[str, jax.Array]:  # fmt: skip
                tree = restored(weights)
                inner = step(tree["inner"], tree["modules"], sizes, inputs, labels)
                leaves, _ = named_leaves({"inner": inner})
                return {k: x for k, x in leaves.items() if _layer_path(k) in trained}

            scalars = {k: jax.ShapeDtypeStruct((), jnp.float32) for k in sizes}
            parts[programs[choice]] = make(changed, spec, scalars, inputs, labels)
        steps.append({"program": programs.get(choice), "sizes": sizes})
    manifest = {
        "format": FORMAT,
        "input_shape": list(shape),
        "input_dtype": jnp.dtype(dtype).name,
        "way": plan.architecture.head.outputs[0],
        "batch_size": batch_size,
        "steps": steps,
    }
    return write_artefact(path, parts, named, manifest)


def plan_costs(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a table: memory and operations of each step.

    Memory is that of one image, by the paper's memory model. The last row is a step
    that trains all layers.
    """
    network, kept = plan.architecture, plan.kept()
    all_layers = [layer.path for layer in network.layers]
    rows = []
    for name, trained, shares in (
        *((f"step {k + 1}", list(x), kept) for k, x in enumerate(plan.steps)),
        ("all layers", all_layers, {}),
    ):
        memory = count_memory(network, trained, kept=shares)
        macs = count_macs(network, trained, kept=shares)
        rows.append([
            name, f"{len(trained)} of {len(all_layers)}",
            f"{memory.num_bytes / MB:.2f}", f"{macs.total / 1e6:.1f}",
        ])  # fmt: skip
    return ["", "layers", "MB", "million MACs an image"], rows


def _layer_path(name: str) -> str:
    """Return the path of the layer that a named parameter belongs to."""
    path = name.removeprefix("inner/").rpartition("/")[0]
    return path.removeprefix("backbone/")
