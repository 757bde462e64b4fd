"""Networks as `(init, apply)` pairs over plain dictionaries; Flax stays in here."""

from lite_jax.nn.backbones import conv4, pixels

__all__ = ["conv4", "pixels"]
