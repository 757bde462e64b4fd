"""Class-indexed image sources, episodes drawn from them, and background loading.

Everything here is NumPy; no module of this folder imports JAX.
"""

from lite_jax.data.augment import random_affine, random_crop
from lite_jax.data.episodes import EpisodeSpec, sample_episode
from lite_jax.data.folders import folder, omniglot_folder
from lite_jax.data.loader import load_batch, load_task, run_ahead
from lite_jax.data.sources import (
    SPLITS,
    ArraySource,
    ClassSource,
    digits,
    rotated,
    synthetic,
)

__all__ = [
    "SPLITS",
    "ArraySource",
    "ClassSource",
    "EpisodeSpec",
    "digits",
    "folder",
    "load_batch",
    "load_task",
    "omniglot_folder",
    "random_affine",
    "random_crop",
    "rotated",
    "run_ahead",
    "sample_episode",
    "synthetic",
]
