"""The layout of the package, read from its imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lite_jax"
LAYERS = {
    0: ["types", "errors"],
    1: [
        "additive",
        "partition",
        "sampling",
        "chunks",
        "recompute",
        "lite",
        "loss_sum",
        "class_stats",
        "feature_table",
        "mahalanobis",
        "nn",
        "data",
        "metrics",
        "checkpoint",
        "defaults",
        "workdir",
        "parallel",
        "accounting",
        "architecture",
        "artefact",
        "budget",
        "preemption",
        "progress",
        "published",
        "video_metrics",
    ],
    2: ["learners", "hypergrad", "pmeta"],
    3: ["objectives"],
    4: [
        "factory",
        "feed",
        "models",
        "evaluate",
        "train",
        "benchmarks",
        "reweight",
        "rl",
        "classify",
        "deploy",
        "doctor",
    ],
    5: ["cli", "demo", "main"],
}
INSIDE = {  # arrows allowed within a layer
    ("chunks", "additive"), ("chunks", "sampling"),
    ("recompute", "additive"), ("recompute", "chunks"), ("recompute", "partition"),
    ("recompute", "sampling"),
    ("lite", "additive"), ("lite", "chunks"), ("lite", "recompute"),
    ("lite", "sampling"),
    ("loss_sum", "additive"), ("loss_sum", "chunks"), ("loss_sum", "partition"),
    ("loss_sum", "recompute"), ("loss_sum", "sampling"),
    ("class_stats", "additive"), ("feature_table", "additive"),
    ("mahalanobis", "additive"), ("nn", "additive"),
    ("data", "defaults"),
    ("workdir", "metrics"), ("workdir", "defaults"), ("artefact", "metrics"),
    ("classify", "evaluate"), ("classify", "factory"), ("classify", "models"),
    ("cli", "demo"),
    ("progress", "metrics"),
    ("models", "factory"), ("evaluate", "factory"), ("evaluate", "models"),
    ("benchmarks", "factory"), ("benchmarks", "models"), ("benchmarks", "evaluate"),
    ("video_metrics", "metrics"),
    ("accounting", "architecture"),
    ("nn", "architecture"), ("learners", "hypergrad"), ("learners", "pmeta"),
    ("deploy", "models"), ("deploy", "evaluate"),
    ("reweight", "factory"), ("reweight", "models"), ("reweight", "evaluate"),
    ("rl", "factory"), ("rl", "models"), ("rl", "evaluate"),
    ("feed", "factory"), ("train", "feed"),
    ("train", "factory"), ("train", "models"), ("train", "evaluate"),
}  # fmt: skip
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}


def modules():
    return [p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py"]


def imported(path):
    """Dotted names that a file imports outside `if TYPE_CHECKING:` blocks."""
    tree = ast.parse(path.read_text())
    typing_only = [
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    ]
    names = []
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def part(dotted):
    return dotted.split(".")[1]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_go_down_only(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for name in imported(path):
        if not name.startswith("lite_jax."):
            continue
        other = part(name)
        if other == own and path.parent != PACKAGE:
            continue  # modules of one folder know each other
        below = LAYER_OF[other] < LAYER_OF[own]
        assert below or (own, other) in INSIDE, f"{own} imports {other}"


def roots(path):
    return {name.split(".")[0] for name in imported(path)}


def test_only_nn_knows_flax_and_data_never_imports_jax():
    for path in modules():
        folder = path.relative_to(PACKAGE).parts[0]
        assert "flax" not in roots(path) or folder == "nn", path
        if folder == "data":
            assert not {"jax", "flax", "optax", "chex"} & roots(path), path


def test_the_heart_knows_jax_and_its_own_parts_alone():
    third_party = roots(PACKAGE / "lite.py") - {"__future__", "collections", "typing"}
    assert third_party - {"functools", "inspect", "warnings"} == {"jax", "lite_jax"}
    own = {part(n) for n in imported(PACKAGE / "lite.py") if n.startswith("lite_jax.")}
    parts = {"additive", "chunks", "recompute", "sampling"}
    assert own == {"types", "errors"} | parts


def test_nothing_imports_experiments_or_configs_and_no_private_jax():
    for path in modules():
        assert not {"experiments", "configs", "tests"} & roots(path), path
    for path in [*modules(), *ROOT.glob("experiments/*.py"), *ROOT.glob("tests/*.py")]:
        for name in imported(path):
            private = ("jax._src", "jax.core", "jax.interpreters", "jax.extend")
            assert not name.startswith(private), f"{path}: {name}"


def test_experiments_use_the_public_package_and_configs_the_defaults_alone():
    for path in ROOT.glob("configs/*.py"):
        own = {n for n in imported(path) if n.startswith("lite_jax")}
        assert own == {"lite_jax.defaults"}, path


def test_there_is_no_drawer_for_odds_and_ends():
    names = {p.name for p in modules()}
    assert not names & {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert not (PACKAGE / "_src").exists()
