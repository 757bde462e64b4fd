"""Evaluations on benchmarks of many data sets: Meta-Dataset, VTAB+MD and ORBIT."""
