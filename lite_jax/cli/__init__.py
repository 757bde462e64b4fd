"""The command lines `lite-jax`, `lite_jax.main` and `lite_jax.data`."""
