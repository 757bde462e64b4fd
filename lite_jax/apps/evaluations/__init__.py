"""Benchmarks of many data sets: VTAB+MD, Meta-Dataset and ORBIT, one command each."""
