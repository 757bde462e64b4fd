"""Benchmarks of many data sets: VTAB+MD, Meta-Dataset and ORBIT, one command each."""

from lite_jax.apps.evaluations.run import run_benchmark

__all__ = ["run_benchmark"]
