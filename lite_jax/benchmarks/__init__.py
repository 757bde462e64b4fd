"""Benchmarks of many data sets: VTAB+MD, Meta-Dataset and ORBIT, one command each."""

from lite_jax.benchmarks.run import run_benchmark

__all__ = ["run_benchmark"]
