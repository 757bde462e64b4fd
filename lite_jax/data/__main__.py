"""The command `python -m lite_jax.data`, which describes or caches a data set."""

from lite_jax.cli.data_command import main

if __name__ == "__main__":
    main()
