"""The layout of the package, read from its imports."""

import ast
import functools
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
    ("cli", "demo"), ("main", "cli"),
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
FIXTURES = ("tests.toys", "tests.bilevel")  # problems that experiments share
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}


def files(pattern):
    """Return the repository's files of a pattern, of which there have to be some."""
    found = sorted(ROOT.glob(pattern))
    assert found, f"no {pattern}"
    return found


def modules():
    return [p for p in files("lite_jax/**/*.py") if p != PACKAGE / "__init__.py"]


@functools.cache
def parsed(path):
    return ast.parse(path.read_text())


@functools.cache
def imported(path):
    """Dotted names that a file imports outside `if TYPE_CHECKING:` blocks."""
    tree = parsed(path)
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
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


def used(path):
    """Return the dotted names that a file imports, or reaches through what it imports.

    With `from lite_jax import factory`, `factory.AUTO` is "lite_jax.factory.AUTO".
    """
    places, names = {}, list(imported(path))
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known = alias.asname or alias.name.split(".")[0]
                places[known] = alias.name if alias.asname else known
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                places[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(parsed(path)):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in places:
            names.append(".".join([places[node.id], *reversed(parts)]))
    return names


NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}  # public, says Python


def private_names(path, package):
    """Return the used names of a package that begin with an underscore."""
    return {
        name
        for name in used(path)
        if name.split(".")[0] == package
        for x in name.split(".")
        if x.startswith("_") and not x.endswith("__") and x not in NAMED_TUPLES
    }


def part(dotted):
    return dotted.split(".")[1]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_go_down_only(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for name in imported(path):
        assert name != "lite_jax", f"{path}: imports the whole package"
        if not name.startswith("lite_jax."):
            continue
        other = part(name)
        if other == own and path.parent != PACKAGE:
            continue  # modules of one folder know each other
        below = LAYER_OF[other] < LAYER_OF[own]
        assert below or (own, other) in INSIDE, f"{own} imports {other}"


def test_the_table_of_layers_names_what_there_is_and_no_arrow_too_many():
    own = {
        path: path.relative_to(PACKAGE).with_suffix("").parts[0] for path in modules()
    }
    assert set(LAYER_OF) == set(own.values())
    arrows = {
        (own[path], part(name))
        for path in modules()
        for name in imported(path)
        if name.startswith("lite_jax.")
    }
    sideways = {(a, b) for a, b in arrows if a != b and LAYER_OF[a] <= LAYER_OF[b]}
    assert sideways == INSIDE


def roots(path):
    return {name.split(".")[0] for name in imported(path)}


def test_only_nn_knows_flax_and_data_never_imports_jax():
    rooms = {}
    for path in modules():
        rooms.setdefault(path.relative_to(PACKAGE).parts[0], set()).update(roots(path))
    assert {room for room, known in rooms.items() if "flax" in known} == {"nn"}
    assert "numpy" in rooms["data"]
    assert not {"jax", "flax", "optax", "chex"} & rooms["data"]


def test_the_heart_knows_jax_and_its_own_parts_alone():
    third_party = roots(PACKAGE / "lite.py") - {"__future__", "collections", "typing"}
    assert third_party - {"functools", "inspect", "warnings"} == {"jax", "lite_jax"}
    own = {part(n) for n in imported(PACKAGE / "lite.py") if n.startswith("lite_jax.")}
    parts = {"additive", "chunks", "recompute", "sampling"}
    assert own == {"types", "errors"} | parts


def test_nothing_imports_experiments_or_configs_and_no_private_jax():
    for path in modules():
        assert not {"experiments", "configs", "tests"} & roots(path), path
    for path in [*modules(), *files("experiments/*.py"), *files("tests/*.py")]:
        assert not private_names(path, "jax"), path
        for name in used(path):
            private = ("jax.core.", "jax.interpreters.", "jax.extend.")
            assert not f"{name}.".startswith(private), f"{path}: {name}"


def test_experiments_use_the_public_package_and_configs_the_defaults_alone():
    """Public is what begins with no underscore; of the tests, two fixtures."""
    for path in files("experiments/*.py"):
        assert not private_names(path, "lite_jax"), path
        fixtures = {n for n in imported(path) if n.startswith("tests")}
        assert all(n.startswith(FIXTURES) for n in fixtures), path
    for path in files("configs/*.py"):
        own = {n for n in imported(path) if n.startswith("lite_jax")}
        assert own == {"lite_jax.defaults"}, path
        assert not private_names(path, "lite_jax"), path


@pytest.mark.parametrize(
    "line",
    [
        "from lite_jax._lite import lite_sum",
        "from lite_jax.lite import _consume",
        "import lite_jax\nlite_jax.lite._consume(key)",
        "import lite_jax.lite\nlite_jax.lite._consume(key)",
        "import lite_jax.lite as heart\nprint(heart._consume)",
        "from lite_jax import factory as made\nmade._axis_name(config).size",
    ],
)
def test_private_names_are_noticed(line, tmp_path):
    (tmp_path / "private.py").write_text(line)
    assert private_names(tmp_path / "private.py", "lite_jax")
    assert not private_names(tmp_path / "private.py", "jax")


def test_public_names_are_not_taken_for_private_ones(tmp_path):
    lines = "import lite_jax\nlite_jax.Task._fields\nlite_jax.__version__\nx._own"
    (tmp_path / "public.py").write_text(lines)
    assert not private_names(tmp_path / "public.py", "lite_jax")


def test_there_is_no_drawer_for_odds_and_ends():
    names = {p.name for p in modules()}
    assert not names & {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert not (PACKAGE / "_src").exists()
