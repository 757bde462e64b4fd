"""VTAB-v2: 18 tasks of 1000 labelled images each, and their test sets.

Source: Zhai et al., "A Large-scale Study of Representation Learning with the Visual
Task Adaptation Benchmark", 2019; Dumoulin et al. 2021 for the choice of 18 (VTAB-1k
without DTD). Two protocols differ in support and test set:

- "official": support is 800 training and 200 validation images; the test set is VTAB's;
- "lite", as in the LITE paper's code: support is the first 1000 training images; the
  test set is the data set's test split (CLEVR's validation split), or without one all
  other training images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lite_jax.data.images import ImageSpec
from lite_jax.data.readers.folders import class_folders, images_of
from lite_jax.data.readers.labelled import FileSet, LabelledImages, listed_images
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
VTAB_PROTOCOLS = {"official": "vtab", "lite": "lanczos"}
"""Name of each protocol → name of its resize rule."""


class VtabTask(NamedTuple):
    """A task: a learner adapts to `support` and is evaluated on all of `test`.

    Attributes:
        name: Name of the task, one of `VTAB`.
        num_classes: Labels are 0 … num_classes - 1; some may have no support image.
        support: The support set, 1000 images by default.
        test: The test set.
        resize: Name of the images' resize rule.
        layout: Layout of the files: "tfds", "list" or "folder". In "folder", the
            support is drawn by `vtab_task`, so it is not the published one.
    """

    name: str
    num_classes: int
    support: LabelledImages
    test: LabelledImages
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
    """Return a task, read from the first of these layouts that lies below `root`.

    - a data set prepared by tfds: `root/<data set>[/<config>]/<version>`;
    - a folder with lists, as "VTAB-1k" is distributed: `root/<list name>/` with
      `train800val200.txt` and `test.txt`, whose lines are "path label";
    - for "sun397" under "lite", a tree of class folders, `root/sun397/`;
    - `root/<name>/{train,test}/<class>/<image>`, classes numbered in order of name.

    Args:
        root: The folder of the data sets.
        name: Name of the task, one of `VTAB`.
        image_size: Pixels a side.
        protocol: "official" or "lite".
        resize: Name of the resize rule; by default the protocol's, "vtab" or "lanczos".
        num_support: Number of support images; other values than 1000 are for trials. It
            has no effect on a folder with lists.

    Raises:
        UserError: The name or the protocol is unknown, or the data set is missing; then
            the message has the command that prepares it.
    """
    if name not in RULES:
        raise unknown_name("VTAB task", name, RULES)
    if protocol not in VTAB_PROTOCOLS:
        raise unknown_name("VTAB protocol", protocol, VTAB_PROTOCOLS)
    spec = ImageSpec(image_size, resize or VTAB_PROTOCOLS[protocol])
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
        expressions = _split_expressions(folder, rule, protocol, num_support)
        support_split, test_split = expressions
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
        return _sun397_lite_task(base / name, spec, num_support)
    if (base / name / "train").is_dir() and (base / name / "test").is_dir():
        return _folder_task(base / name, spec, num_support)
    raise not_prepared(base, dataset, version)


_TRAIN_LIST = "train800val200.txt"


def _split_expressions(
    folder: Path, rule: VtabRule, protocol: str, num_support: int
) -> tuple[str, str]:
    """Return tfds' split expressions of the support and of the test set."""
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
    """Examples of a data set prepared by tfds, with the labels of a task.

    Attributes:
        split: The examples.
        name: Name of the task.
        rule: The task's rule, which gives the labels.
        spec: Size and form of the images.
    """

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
        # Pixels are 0 or 1, so they are scaled to 0 or 255 before resizing.
        unresized = ImageSpec(64, self.spec.resize, channels=1)
        return self.spec.fit(open_feature(example["image"], unresized) * np.uint8(255))

    def _label(self, example: Example) -> int:
        label = self.rule.label(example)
        if not 0 <= label < self.rule.num_classes:
            raise UserError(
                f"{self.name}: label {label} is outside its {self.rule.num_classes} "
                "classes: the data set is of another version, or damaged"
            )
        return label


def _folder_task(root: Path, spec: ImageSpec, num_support: int) -> VtabTask:
    names = list(class_folders(root / "train"))
    sets = {}
    for split in ("train", "test"):
        folders = class_folders(root / split)
        for name in folders:
            if name not in names:
                raise UserError(f"{root / split} has class {name!r}, and train has not")
        sets[split] = [
            (file, names.index(name))
            for name, folder in folders.items()
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


def _sun397_lite_task(root: Path, spec: ImageSpec, num_support: int) -> VtabTask:
    """Return the task of SUN397's tree of class folders, split 70/10/20.

    The support is meant to have all classes. Training images are gone through in random
    order, and up to two a class are taken, until every class has one or 10 num_support
    images have passed. Random other training images fill the support. The rule is that
    of the LITE paper's code, but the random numbers are not.
    """
    folders = [path for path in sorted(root.rglob("*")) if path.is_dir()]
    leaves = [path for path in folders if images_of(path)]
    files = [(f, label) for label, leaf in enumerate(leaves) for f in images_of(leaf)]
    rng = np.random.default_rng(15)
    order = rng.permutation(len(files))
    train, _, test = np.split(order, [len(files) * 7 // 10, len(files) * 8 // 10])
    balanced, counts = [], np.zeros(len(leaves), int)
    for number in train[: 10 * num_support]:
        if counts.all():
            break
        label = files[number][1]
        if counts[label] < 2:
            counts[label] += 1
            balanced.append(int(number))
    others = np.setdiff1d(train, balanced)
    missing = max(num_support - len(balanced), 0)
    support = [*balanced[:num_support], *rng.choice(others, missing, replace=False)]
    return VtabTask(
        "sun397",
        len(leaves),
        FileSet([files[i] for i in support], spec),
        FileSet([files[i] for i in test], spec),
        spec.resize,
        "folder",
    )
