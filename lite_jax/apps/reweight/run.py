"""The program `reweighting`: checks of settings, and the job of a run."""

from __future__ import annotations

import logging
from pathlib import Path

from ml_collections import ConfigDict

from lite_jax import errors
from lite_jax.apps.reweight.loop import first_state
from lite_jax.apps.reweight.noisy_labels import compare_training
from lite_jax.apps.reweight.pruned_training import compare_rules, shares_kept
from lite_jax.apps.reweight.sets import Sets, make_sets
from lite_jax.apps.reweight.settings import ReweightingSettings
from lite_jax.apps.reweight.setup import make_setup
from lite_jax.errors import UserError
from lite_jax.run import configs
from lite_jax.run.configs import read_settings
from lite_jax.run.loop import open_folder

_logger = logging.getLogger(__name__)

_JOBS = {"prune": compare_rules, "reweight": compare_training}


def run_reweighting(config: ConfigDict | ReweightingSettings, workdir: Path) -> str:
    """Run the job `config.reweight.job`, and return its table of results.

    Writes `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/last` and
    `weights.npy`, the mean weight of each training example, to the workdir. The job
    "prune" adds `pruning.jsonl`, a row for each network. A stopped run resumes.

    Raises:
        UserError: A setting out of range, data that do not fit the settings, or a
            workdir of another run; all are checked before anything is written.
    """
    config = read_settings(config, ReweightingSettings)
    job = errors.pick("reweight.job", config.reweight.job, _JOBS)
    _check_settings(config)
    sets = make_sets(config)
    setup = make_setup(config, sets)
    start = first_state(setup)
    with open_folder(workdir, config, start, lambda saved: saved.step) as folder:
        _logger.info(
            "%s: %d training examples (%s), %d clean ones, %d test ones, %d classes",
            config.name, len(sets.train.labels), _noise(sets), len(sets.meta.labels),
            len(sets.test.labels), sets.num_classes,
        )  # fmt: skip
        return job(setup, folder)


def _check_settings(config: ReweightingSettings) -> None:
    configs.check_at_least(
        config,
        1,
        "train.steps",
        "train.batch_size",
        "train.valid_every",
        "inner.steps",
        "reweight.train_size",
        "reweight.meta_size",
        "reweight.meta_batch_size",
        "reweight.seeds",
        "reweight.width",
        "reweight.heads",
        "reweight.vocabulary",
        "reweight.length",
    )
    shares_kept(config)
    if config.reweight.width % config.reweight.heads:
        raise UserError(
            f"reweight.width={config.reweight.width} is no multiple of "
            f"reweight.heads={config.reweight.heads}"
        )


def _noise(sets: Sets) -> str:
    if sets.wrong is None:
        return "labels as they are"
    return f"{100 * sets.wrong.mean():.0f} % of the labels wrong"
