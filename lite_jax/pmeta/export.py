"""Export a plan and its network as one file that `lite_jax.pmeta.device` reads."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from lite_jax.files import exported, named_leaves, shapes_of, write_artefact
from lite_jax.pmeta.device import FORMAT
from lite_jax.pmeta.plan import Plan, batch_logits, inner_params, make_step
from lite_jax.pmeta.sparse import Choice
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
    """Write an artefact, and return the bytes of each of its parts.

    Programs take supports and queries of any size. Steps that train the same layers
    share one.

    Args:
        path: The file; written whole or not at all.
        plan: What is trained.
        params: The learner's.
        dtype: Of the inputs.
        batch_size: Examples computed at once while adapting.
        platforms: As `jax.export.export` takes them, e.g. `("cpu", "cuda")`; by default
            the platform that this runs on.

    Raises:
        UserError: A plan that cannot be carried out.
    """
    plan.check()
    inner, modules = inner_params(plan.architecture, params)
    named, structure = named_leaves({"inner": inner, "modules": modules})
    shape = (*plan.architecture.blocks[0].inputs,)

    def restored(weights: dict[str, Any]) -> Any:
        return jax.tree.unflatten(structure, [weights[name] for name in named])

    def predict(weights: dict[str, Any], inputs: jax.Array) -> jax.Array:
        tree, choice = restored(weights), plan.choices()[0]
        own = tree["inner"], tree["modules"]
        return batch_logits(plan.architecture, choice, {}, *own, inputs)

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
                found, _ = named_leaves({"inner": inner})
                return {k: x for k, x in found.items() if _layer(k) in trained}

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


def _layer(name: str) -> str:
    """Return the layer that holds a parameter of this name."""
    place = name.removeprefix("inner/").rpartition("/")[0]
    return place.removeprefix("backbone/")
