"""VTAB-v2: 18 tasks of 1000 labelled images each, and their test sets.

Source: Zhai et al., "A Large-scale Study of Representation Learning with the Visual
Task Adaptation Benchmark", 2019; Dumoulin et al. 2021 for the choice of 18 (VTAB-1k
without DTD). Two protocols differ in what is support and what is tested:

- "official": 800 training images and 200 of validation, and VTAB's test sets;
- "lite": the first 1000 training images, and for the sets that have no test split all
  the other ones, as in the LITE paper's code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lite_jax.data.images import ImageSpec
from lite_jax.data.readers.folders import class_folders, images_of
from lite_jax.data.readers.labelled import FileSet, LabelledSet, listed_images
from lite_jax.data.readers.prepared import (
    PreparedSplit,
    find_prepared,
    is_prepared,
    not_prepared,
    open_feature,
    split_names,
)
from lite_jax.data.vtab.rules import RULES, Example, VtabRule
from lite_jax.errors import UserError, unknown_name

NUM_SUPPORT = 1000
PROTOCOLS = {"official": "vtab", "lite": "lanczos"}
"""The protocols, and how each resizes."""


class VtabTask(NamedTuple):
    """One task: adapt on `support`, be judged on all of `test`.

    Attributes:
        name: One of `VTAB`.
        num_classes: Labels are 0 … num_classes - 1; some may have no support image.
        support: The 1000 images.
        test: The test set, tens of thousands.
        resize: The rule by which its images were resized.
        layout: How it was read: "tfds", "list" or "folder"; the 1000 images of "folder"
            are drawn here, so they are not the published ones.
    """

    name: str
    num_classes: int
    support: LabelledSet
    test: LabelledSet
    resize: str
    layout: str


def vtab_task(
    root: str | Path,
    name: str,
    image_size: int = 224,
    *,
    protocol: str = "official",
    resize: str = "",
    num_support: int = NUM_SUPPORT,
) -> VtabTask:
    """Return a task, from whichever of three layouts lies below `root`.

    - prepared by tfds: `root/<data set>[/<config>]/<version>`;
    - folders with lists, as "VTAB-1k" is passed around: `root/<list name>/` with
      `train800val200.txt` and `test.txt`, whose lines are "path label";
    - `root/<name>/{train,test}/<class>/<image>`, classes numbered in order of name.

    Args:
        root: Where the data sets are.
        name: One of `VTAB`.
        image_size: Pixels a side.
        protocol: "official" or "lite".
        resize: The rule; by default the protocol's, "vtab" or "lanczos".
        num_support: Images to adapt on: 1000, but for trials.

    Raises:
        UserError: An unknown name or protocol, or a data set that is not there; the
            message has the command that prepares it.
    """
    if name not in RULES:
        raise unknown_name("VTAB task", name, RULES)
    if protocol not in PROTOCOLS:
        raise unknown_name("VTAB protocol", protocol, PROTOCOLS)
    spec = ImageSpec(image_size, resize or PROTOCOLS[protocol])
    rule, base = RULES[name], Path(root).expanduser()
    dataset, version = rule.dataset, rule.version
    if name == "diabetic_retinopathy" and protocol == "lite":
        dataset = "diabetic_retinopathy_detection/original"
    listed = next(
        (
            base / x
            for x in (name, rule.list_name)
            if (base / x / _TRAIN_LIST).is_file()
        ),
        None,
    )
    if is_prepared(base, dataset, version):
        folder = find_prepared(base, dataset, version)
        support_split, test_split = _splits(folder, rule, protocol, num_support)
        return VtabTask(
            name,
            rule.num_classes,
            PreparedSet(PreparedSplit(folder, support_split), name, rule, spec),
            PreparedSet(PreparedSplit(folder, test_split), name, rule, spec),
            spec.resize,
            "tfds",
        )
    if listed is not None:
        if protocol != "official":
            raise UserError(
                f"{listed} holds VTAB's official 1000 images, and protocol "
                f"{protocol!r} takes others: set protocol=official"
            )
        support, test = (
            FileSet(listed_images(listed, listed / file, rule.num_classes), spec)
            for file in (_TRAIN_LIST, "test.txt")
        )
        return VtabTask(name, rule.num_classes, support, test, spec.resize, "list")
    if name == "sun397" and protocol == "lite" and (base / name).is_dir():
        return _sun397_as_lite(base / name, spec, num_support)
    if (base / name / "train").is_dir() and (base / name / "test").is_dir():
        return _from_folders(base / name, spec, num_support)
    raise not_prepared(base, dataset, version)


_TRAIN_LIST = "train800val200.txt"


def _splits(
    folder: Path, rule: VtabRule, protocol: str, num_support: int
) -> tuple[str, str]:
    """Return support and test in tfds' language."""
    sizes = split_names(folder)

    def start(split: str, fraction: tuple[int, int]) -> int:
        if split not in sizes:
            raise UserError(f"{folder} lacks the split {split!r}: it holds {sizes}")
        return sizes[split] * fraction[0] // fraction[1]

    if protocol == "lite":
        support = f"train[:{num_support}]"
        if rule.lite_test is None:
            return support, f"train[{num_support}:]"
        name, fraction = rule.lite_test
        return support, f"{name}[{start(name, fraction)}:]"
    train = num_support * 4 // 5
    name, fraction = rule.valid
    first = start(name, fraction)
    support = f"train[:{train}]+{name}[{first}:{first + num_support - train}]"
    name, fraction = rule.test
    return support, f"{name}[{start(name, fraction)}:]"


@dataclasses.dataclass(frozen=True)
class PreparedSet:
    """Examples of a data set prepared by tfds, under a task's label rule."""

    split: PreparedSplit
    name: str
    rule: VtabRule
    spec: ImageSpec

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.split)

    def read(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return images `[n, size, size, 3]` uint8 and labels `[n]` int32."""
        examples = self.split.read(indices)
        images = [self._image(example) for example in examples]
        labels = [self._label(example) for example in examples]
        return np.stack(images), np.array(labels, np.int32)

    def _image(self, example: Example) -> np.ndarray:
        if not self.name.startswith("dsprites"):
            return open_feature(example["image"], self.spec)
        # Pixels are 0 or 1, so they are made bright before they are resized.
        as_it_is = ImageSpec(64, self.spec.resize, channels=1)
        return self.spec.fit(open_feature(example["image"], as_it_is) * np.uint8(255))

    def _label(self, example: Example) -> int:
        label = self.rule.label(example)
        if not 0 <= label < self.rule.num_classes:
            raise UserError(
                f"{self.name}: label {label} is outside its {self.rule.num_classes} "
                "classes: the data set is of another version, or damaged"
            )
        return label


def _from_folders(root: Path, spec: ImageSpec, num_support: int) -> VtabTask:
    names = list(class_folders(root / "train"))
    sets = {}
    for split in ("train", "test"):
        found = class_folders(root / split)
        for name in found:
            if name not in names:
                raise UserError(f"{root / split} has class {name!r}, and train has not")
        sets[split] = [
            (file, names.index(name))
            for name, folder in found.items()
            for file in images_of(folder)
        ]
        if not sets[split]:
            raise UserError(f"{root / split} has no class folders of images")
    order = np.random.default_rng(0).permutation(len(sets["train"]))
    support = [sets["train"][i] for i in order[:num_support]]
    return VtabTask(
        root.name,
        len(names),
        FileSet(support, spec),
        FileSet(sets["test"], spec),
        spec.resize,
        "folder",
    )


def _sun397_as_lite(root: Path, spec: ImageSpec, num_support: int) -> VtabTask:
    """Split SUN397's tree of classes 70/10/20 and draw a support that has all classes.

    In a random order at most two images a class are kept until every class has been
    seen, or ten supports' worth of images; the rest is drawn from what is left. The
    rule is that of the LITE paper's code; its random numbers are not.
    """
    folders = [path for path in sorted(root.rglob("*")) if path.is_dir()]
    leaves = [path for path in folders if images_of(path)]
    files = [(f, label) for label, leaf in enumerate(leaves) for f in images_of(leaf)]
    rng = np.random.default_rng(15)
    order = rng.permutation(len(files))
    train, _, test = np.split(order, [len(files) * 7 // 10, len(files) * 8 // 10])
    kept, counts = [], np.zeros(len(leaves), int)
    for place in train[: 10 * num_support]:
        if counts.all():
            break
        label = files[place][1]
        if counts[label] < 2:
            counts[label] += 1
            kept.append(int(place))
    rest = np.setdiff1d(train, kept)
    missing = max(num_support - len(kept), 0)
    chosen = [*kept[:num_support], *rng.choice(rest, missing, replace=False)]
    return VtabTask(
        "sun397",
        len(leaves),
        FileSet([files[i] for i in chosen], spec),
        FileSet([files[i] for i in test], spec),
        spec.resize,
        "folder",
    )
