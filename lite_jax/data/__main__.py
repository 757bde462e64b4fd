"""`python -m lite_jax.data`: look at a data set, or cache it."""

from lite_jax.cli.data_command import main

if __name__ == "__main__":
    main()
