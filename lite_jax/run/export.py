"""Export of what a trained run's inner rule has learned, to a file for a device."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from lite_jax.errors import UserError
from lite_jax.run import build_backbone, build_learner
from lite_jax.run.configs import read_settings
from lite_jax.run.evaluate import format_table, restore_best
from lite_jax.run.settings import Settings


def export_run(config: ConfigDict | Settings, folder: Path) -> str:
    """Write `plan.zip` of a run's best parameters, and return a table of its costs.

    Raises:
        UserError: The run's inner rule exports nothing, or nothing it has learned; or
            the folder holds no checkpoint.
    """
    config = read_settings(config, Settings)
    rule = build_learner.make_inner_rule(config.inner)
    if config.learner != "maml" or rule.export is None:
        raise UserError(
            f"--mode=export: learner={config.learner} with inner.rule="
            f"{config.inner.rule} learns no plan: export a run of configs/pmeta.py"
        )
    _, run, sources = restore_best(config, folder)
    backbone = build_backbone.make_backbone(run.config.backbone)
    assert backbone.describe is not None  # `maml` refuses other backbones
    architecture = backbone.describe(
        sources("test").image_shape, build_learner.most_ways(config)
    )
    path = folder / "plan.zip"
    exported = rule.export(path, architecture, run.params)
    parts = [f"{name} {size / 1000:.1f} kB" for name, size in exported.sizes.items()]
    table = format_table(exported.header, exported.rows)
    return f"{table}\n{path}: {path.stat().st_size / 1000:.1f} kB ({', '.join(parts)})"
