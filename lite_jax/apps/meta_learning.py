"""The program that meta-learns: train, evaluate, export."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from lite_jax.run.evaluate import evaluate_checkpoint, format_results
from lite_jax.run.train import train_and_evaluate


def train(config: ConfigDict, workdir: Path) -> str:
    """Train, test, and return the table of results."""
    return format_results(config, train_and_evaluate(config, workdir))


def evaluate(config: ConfigDict, workdir: Path) -> str:
    """Test a trained workdir on the benchmark that is named, or on test episodes."""
    if config.benchmark.name:
        from lite_jax.apps.evaluations.run import run_benchmark

        table = run_benchmark(config, workdir)
        return f"{table}\nrows: {workdir / config.benchmark.name}.jsonl"
    return format_results(config, evaluate_checkpoint(config, workdir))


def export(config: ConfigDict, workdir: Path) -> str:
    """Export the plan that a run's inner rule learned, and return its costs."""
    from lite_jax.run.export import export_run

    return export_run(config, workdir)
