"""`python -m lite_jax.main`: a run by a configuration; see `lite_jax.cli.program`."""

from lite_jax.cli.program import run

if __name__ == "__main__":
    run()
