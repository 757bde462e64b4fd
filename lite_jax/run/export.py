"""Export of a trained p-Meta run as a bundle that adapts on a device."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from lite_jax.errors import UserError
from lite_jax.pmeta.export import export_plan
from lite_jax.pmeta.memory_model import MB, count_macs, count_memory
from lite_jax.pmeta.plan import Plan, learned_plan
from lite_jax.run import build_backbone, build_learner
from lite_jax.run.evaluate import format_table, restore_best
from lite_jax.run.schema import Settings
from lite_jax.run.settings import read_settings
from lite_jax.types import Params


def export_run(config: ConfigDict | Settings, folder: Path) -> str:
    """Write `plan.zip` of a run's best parameters, and return a table of its costs.

    `lite_jax.pmeta.device` reads the file.

    Raises:
        UserError: The run's rule learns no plan, the folder holds no checkpoint, or
            all step sizes are 0.
    """
    config = read_settings(config, Settings)
    if config.learner != "maml" or config.inner.rule != "p_meta":
        raise UserError(
            f"--mode=export: learner={config.learner} with inner.rule="
            f"{config.inner.rule} learns no plan: export a run of configs/pmeta.py"
        )
    _, run, sources = restore_best(config, folder)
    params = run.params
    plan = plan_of(run.config, params, sources("test").image_shape)
    path = folder / "plan.zip"
    sizes = export_plan(path, plan, params)
    parts = ", ".join(f"{name} {size / 1000:.1f} kB" for name, size in sizes.items())
    return f"{format_plan(plan)}\n{path}: {path.stat().st_size / 1000:.1f} kB ({parts})"


def plan_of(config: Settings, params: Params, image_shape: tuple[int, ...]) -> Plan:
    """Return the plan of a run's parameters, for images of shape `[h, w, c]`.

    Raises:
        UserError: All step sizes are 0.
    """
    backbone = build_backbone.make_backbone(config.backbone)
    assert backbone.describe is not None  # learners with p_meta refuse other backbones
    return learned_plan(
        backbone.describe(image_shape, build_learner.most_ways(config)),
        params,
        attention=build_learner.make_attention(config.inner),
        norm_gradient=config.inner.norm_gradient,
    )


def format_plan(plan: Plan) -> str:
    """Return a table of the steps of a plan, with the memory and operations of each.

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
    return format_table(["", "layers", "MB", "million MACs an image"], rows)
