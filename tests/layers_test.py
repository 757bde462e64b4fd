"""The layout of the package, read from its imports."""

import ast
import functools
import graphlib
import re
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from lite_jax.run.configs import base_config

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lite_jax"
TOP = {"__init__", "errors", "files", "main", "testing", "trees", "types"}
FLOORS = (  # rooms import from floors below theirs
    ["errors", "types"],
    ["files", "trees"],
    ["lite"],
    ["data", "heads", "nn"],
    ["hypergrad"],
    ["learners"],
    ["pmeta"],
    ["run"],
    ["apps", "classify", "testing"],
    ["cli"],
    ["main"],
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
EXCEPTIONS = {  # (file, room above it): why
    ("data/__main__.py", "cli"): "`python -m lite_jax.data` is a public command",
}
MOST_EXCEPTIONS = 5
READ_CONFIGURATIONS = {
    "cli/program.py", "apps/programs.py",  # the command
    "run/configs.py", "run/recipes.py", "run/workdir.py",  # the door, configs, files
    "apps/reweight/settings.py", "apps/rl/settings.py",
    "apps/meta_learning.py", "apps/evaluations/run.py", "apps/reweight/run.py",
    "apps/rl/run.py", "run/train.py", "run/evaluate.py", "run/export.py",
}  # fmt: skip
SETTINGS = {  # what configs are made of
    "lite_jax.apps.reweight.settings", "lite_jax.apps.rl.settings",
    "lite_jax.run.recipes", "lite_jax.run.configs",
}  # fmt: skip
FIXTURES = ("tests.toys", "tests.bilevel", "tests.stress")  # of what measures


def files(pattern):
    """Return the repository's files of a pattern, of which there have to be some."""
    found = sorted(ROOT.glob(pattern))
    assert found, f"no {pattern}"
    return found


def programs():
    """Return the files that measure: claims, speed and memory, and stress."""
    folders = ("benchmarks", "experiments", "tests/stress")
    return [path for folder in folders for path in files(f"{folder}/*.py")]


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
        for statement in node.body
        for inner in ast.walk(statement)
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

    With `from lite_jax import files`, `files.WEIGHTS` is "lite_jax.files.WEIGHTS".
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


def room_of(path):
    """Return the folder of a file in the package, or its name if it is at the top."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(path):
    """Return the rooms that a file imports from, its own left out."""
    names = [name for name in imported(path) if name.split(".")[0] == "lite_jax"]
    assert "lite_jax" not in names, f"{path}: imports the whole package"
    rooms = {name.split(".")[1] for name in names}
    return rooms - {room_of(path), "lazy_names"}  # of the package, which imports none


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_import_from_floors_below(path):
    file = str(path.relative_to(PACKAGE))
    for other in imported_rooms(path):
        below = FLOOR_OF[other] < FLOOR_OF[room_of(path)]
        assert below or (file, other) in EXCEPTIONS, f"{file} imports {other}"


DYNAMIC = {"__init__.py", "apps/programs.py"}  # names loaded when asked for, programs


def test_only_two_files_import_by_name_and_the_package_imports_nothing_eagerly():
    """What `importlib` imports, the test above does not see."""
    every = [*modules(), PACKAGE / "__init__.py"]
    by_name = {
        str(path.relative_to(PACKAGE))
        for path in every
        if "importlib.import_module" in used(path)
    }
    assert by_name == DYNAMIC
    assert "lite_jax" not in roots(PACKAGE / "__init__.py")


def test_exceptions_are_few_and_none_is_left_over():
    assert len(EXCEPTIONS) <= MOST_EXCEPTIONS
    for file, room in EXCEPTIONS:
        assert FLOOR_OF[room] >= FLOOR_OF[room_of(PACKAGE / file)]
        assert room in imported_rooms(PACKAGE / file)


def test_the_floors_name_the_rooms_there_are_and_few_files_are_at_the_top():
    assert set(FLOOR_OF) == {room_of(path) for path in modules()}
    assert {p.stem for p in PACKAGE.glob("*.py")} == TOP and len(TOP) <= 7


def file_of(dotted):
    """Return the file of a module or package, or None."""
    path = ROOT.joinpath(*dotted.split("."))
    known = [x for x in (path.with_suffix(".py"), path / "__init__.py") if x.is_file()]
    return known[0] if known else None


def imported_modules(path):
    """Return the files of the package that a file imports at once, itself left out."""
    statements = [
        node
        for node in parsed(path).body
        if isinstance(node, ast.ImportFrom) and node.module.startswith("lite_jax")
    ]
    names = {(node.module, alias.name) for node in statements for alias in node.names}
    return {file_of(f"{x}.{name}") or file_of(x) for x, name in names} - {path}


def test_no_files_import_each_other_in_a_circle():
    graph = {path: imported_modules(path) for path in modules()}
    assert sum(map(len, graph.values())) > 300
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def setting_names(config, prefix=""):
    """Return the dotted names of all settings."""
    names = set()
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            names |= setting_names(value, f"{prefix}{key}.")
        elif prefix:
            names.add(prefix + key)
    return names


def test_configurations_are_read_at_the_entries_alone():
    """Behind them are frozen settings."""
    above = [path for path in modules() if FLOOR_OF[room_of(path)] >= FLOOR_OF["run"]]
    read = {
        str(path.relative_to(PACKAGE))
        for path in above
        if "ml_collections" in roots(path)
    }
    assert read == READ_CONFIGURATIONS


def test_below_the_runs_code_speaks_of_arguments_and_knows_no_configuration():
    names = "|".join(map(re.escape, setting_names(base_config())))
    setting = re.compile(rf"(?<![\w.])(--config\.)?({names})(?![\w.])")
    below = [path for path in modules() if FLOOR_OF[room_of(path)] < FLOOR_OF["run"]]
    assert len(below) > 90
    for path in below:
        assert "ml_collections" not in roots(path), path
        text = "\n".join(
            node.value
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )
        assert not setting.findall(text), path


def roots(path):
    return {name.split(".")[0] for name in imported(path)}


def test_only_nn_knows_flax_and_data_never_imports_jax():
    rooms = {}
    for path in modules():
        rooms.setdefault(room_of(path), set()).update(roots(path))
    assert {room for room, known in rooms.items() if "flax" in known} == {"nn"}
    assert "numpy" in rooms["data"]
    assert not {"jax", "flax", "optax", "chex"} & rooms["data"]


def test_the_gradient_knows_jax_and_the_files_at_the_top_alone():
    heart = [path for path in modules() if room_of(path) == "lite"]
    packages = set().union(*map(roots, heart)) - set(sys.stdlib_module_names)
    assert packages <= {"jax", "numpy", "lite_jax"}
    assert set().union(*map(imported_rooms, heart)) == {"errors", "trees", "types"}


PUBLIC_OF_CORE = {"jax.core", "jax.core.Tracer", "jax.core.eval_jaxpr"}


def test_nothing_imports_experiments_or_configs_and_no_private_jax():
    for path in modules():
        assert not {"benchmarks", "experiments", "configs", "tests"} & roots(path), path
    for path in [*modules(), *programs(), *files("tests/*.py")]:
        assert not private_names(path, "jax"), path
        for name in used(path):
            private = ("jax.core.", "jax.interpreters.", "jax.extend.")
            known = name in PUBLIC_OF_CORE
            assert known or not f"{name}.".startswith(private), f"{path}: {name}"


def test_experiments_use_the_public_package_and_configs_the_defaults_alone():
    """Public is what begins with no underscore; of the tests, two fixtures."""
    for path in programs():
        assert not private_names(path, "lite_jax"), path
        fixtures = {n for n in imported(path) if n.startswith("tests")}
        assert all(n.startswith(FIXTURES) for n in fixtures), path
    for path in files("configs/*.py"):
        own = {n for n in imported(path) if n.startswith("lite_jax")}
        assert own <= SETTINGS, path
        assert not private_names(path, "lite_jax"), path


@pytest.mark.parametrize(
    "line",
    [
        "from lite_jax._lite import lite_sum",
        "from lite_jax.lite import _consume",
        "import lite_jax\nlite_jax.lite._consume(key)",
        "import lite_jax.lite\nlite_jax.lite._consume(key)",
        "import lite_jax.lite as heart\nprint(heart._consume)",
        "from lite_jax.run import build_gradient as made\nmade._axis_name(config).size",
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
