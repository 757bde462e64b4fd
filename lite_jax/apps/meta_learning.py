"""The modes of the program `meta_learning`: train, evaluate, export."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from lite_jax.run.configs import read_settings
from lite_jax.run.evaluate import evaluate_checkpoint, format_results
from lite_jax.run.settings import Settings
from lite_jax.run.train import train_and_evaluate


def train(config: ConfigDict, workdir: Path) -> str:
    """Train a learner, test it, and return the table of results."""
    settings = read_settings(config, Settings)
    return format_results(settings, train_and_evaluate(settings, workdir))


def evaluate(config: ConfigDict, workdir: Path) -> str:
    """Test a trained workdir on `benchmark.name`, or on test episodes without one."""
    settings = read_settings(config, Settings)
    if settings.benchmark.name:
        from lite_jax.apps.evaluations.run import run_benchmark

        table = run_benchmark(settings, workdir)
        return f"{table}\nrows: {workdir / settings.benchmark.name}.jsonl"
    return format_results(settings, evaluate_checkpoint(settings, workdir))


def export(config: ConfigDict, workdir: Path) -> str:
    """Export the plan that a run's inner rule learned, and return a table of costs."""
    from lite_jax.run.export import export_run

    return export_run(read_settings(config, Settings), workdir)
