"""The command `lite-jax`."""
