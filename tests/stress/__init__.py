"""Fuzzing, kills and long runs: each `python -m tests.stress.NAME` leaves rows."""
