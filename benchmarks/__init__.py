"""Speed and memory: each `python -m benchmarks.NAME` leaves rows."""
