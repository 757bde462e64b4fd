"""Class-indexed image sources, episodes drawn from them, and background loading.

Everything here is NumPy; no module of this folder imports JAX.
"""

from lite_jax.data.augment import random_affine, random_crop
from lite_jax.data.episodes import EpisodeSpec, VariableSpec, sample_episode
from lite_jax.data.images import RESIZE_RULES, ImageSpec, make_resize
from lite_jax.data.loader import load_batch, load_task, run_ahead
from lite_jax.data.meta_dataset.dumped import DumpedEpisodes
from lite_jax.data.meta_dataset.source import make_meta_dataset
from lite_jax.data.readers.builtin import digits, synthetic
from lite_jax.data.readers.combined import Mixture, rotated
from lite_jax.data.readers.folders import folder, omniglot_folder
from lite_jax.data.registry import DATASETS, DataSettings, detect, open_source
from lite_jax.data.sources import SPLITS, ArraySource, ClassSource, Groups

__all__ = [
    "DATASETS",
    "DataSettings",
    "detect",
    "open_source",
    "RESIZE_RULES",
    "SPLITS",
    "VariableSpec",
    "ArraySource",
    "ClassSource",
    "EpisodeSpec",
    "Groups",
    "ImageSpec",
    "Mixture",
    "digits",
    "folder",
    "load_batch",
    "load_task",
    "make_meta_dataset",
    "DumpedEpisodes",
    "make_resize",
    "omniglot_folder",
    "random_affine",
    "random_crop",
    "rotated",
    "run_ahead",
    "sample_episode",
    "synthetic",
]
