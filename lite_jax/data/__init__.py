"""Class-indexed image sources, episodes drawn from them, and background loading.

Everything here is NumPy; no module of this folder imports JAX.

Names are imported on first use, as those of `lite_jax`.
"""

from typing import TYPE_CHECKING

from lite_jax import lazy_names

if TYPE_CHECKING:  # for type checkers and editors; a test compares it with `_MODULES`
    from lite_jax.data.augment import random_affine, random_crop
    from lite_jax.data.episodes import EpisodeSpec, VariableSpec, sample_episode
    from lite_jax.data.images import RESIZE_RULES, ImageSpec, make_resize
    from lite_jax.data.loader import load_batch, load_task, run_ahead
    from lite_jax.data.meta_dataset.dumped import DumpedEpisodes
    from lite_jax.data.meta_dataset.source import make_meta_dataset
    from lite_jax.data.readers.builtin import digits, synthetic
    from lite_jax.data.readers.combined import Mixture, rotated
    from lite_jax.data.readers.folders import folder, omniglot_folder
    from lite_jax.data.registry import DATASETS, detect, open_source
    from lite_jax.data.settings import DataSettings
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

_MODULES = {
    "augment": ["random_affine", "random_crop"],
    "episodes": ["EpisodeSpec", "VariableSpec", "sample_episode"],
    "images": ["RESIZE_RULES", "ImageSpec", "make_resize"],
    "loader": ["load_batch", "load_task", "run_ahead"],
    "meta_dataset.dumped": ["DumpedEpisodes"],
    "meta_dataset.source": ["make_meta_dataset"],
    "readers.builtin": ["digits", "synthetic"],
    "readers.combined": ["Mixture", "rotated"],
    "readers.folders": ["folder", "omniglot_folder"],
    "registry": ["DATASETS", "detect", "open_source"],
    "settings": ["DataSettings"],
    "sources": ["SPLITS", "ArraySource", "ClassSource", "Groups"],
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
