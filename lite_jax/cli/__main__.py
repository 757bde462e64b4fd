"""Entry point of `python -m lite_jax.cli`, the command `lite-jax`."""

from lite_jax.cli.command import run

if __name__ == "__main__":
    run()
