"""Studies that use the public package; each is `python -m experiments.NAME`."""
