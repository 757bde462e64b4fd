"""The settings of a data set."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Settings of a data set; each data set reads only the fields that concern it.

    Attributes:
        dataset: Name in `DATASETS`.
        root: Folder or file of the data set.
        image_size: Pixels a side, 1 to 4096.
        channels: 1 or 3, for data sets that can have either.
        resize: Name of a resize rule (`make_resize`); empty for the data set's default.
        class_list: Path of a list of each split's classes
            (`lite_jax.data.class_lists`); empty for none.
        label: Feature (tfds) or column (Parquet) that holds the class.
        allow_pickle: Read pickle files, which run the code that they contain.
        by_alphabet: Draw the classes of an Omniglot episode from one alphabet.
        protocol: Meta-Dataset's protocol, "md-v2" or "lite".
        sources: Meta-Dataset's sources, as NAME,NAME; empty for the protocol's.
        orbit_protocol: ORBIT's protocol, "2021" (clips of 8 frames) or "2022" (single
            frames).
        orbit_mode: Kind of ORBIT's target videos, "clutter" or "clean".
        orbit_filter: ORBIT's annotated issues whose target frames are left out, as
            NAME,NAME; "none" for no filter; empty for the protocol's.
        cache_gb: Largest size of a split's decoded images kept in memory, in 10⁹ bytes.
        synthetic_classes: Number of synthetic classes of each split.
        synthetic_images: Number of images of each synthetic class.
    """

    dataset: str = "digits"
    root: str = ""
    image_size: int = 32
    channels: int = 3
    resize: str = ""
    class_list: str = ""
    label: str = "label"
    allow_pickle: bool = False
    by_alphabet: bool = False
    protocol: str = "md-v2"
    sources: str = ""
    orbit_protocol: str = "2022"
    orbit_mode: str = "clutter"
    orbit_filter: str = ""
    cache_gb: float = 2.0
    synthetic_classes: int = 20
    synthetic_images: int = 40
