"""A gradient loads its own modules alone; help and mistakes load nothing heavy."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import lite_jax
from lite_jax.classify.predictions import FORMATS
from lite_jax.cli import command

ROOT = Path(__file__).parents[1]
GRADIENT = {
    "lite_jax", "lite_jax.errors", "lite_jax.trees", "lite_jax.types",
    "lite_jax.lite", "lite_jax.lite.additive", "lite_jax.lite.arguments",
    "lite_jax.lite.backward",
    "lite_jax.lite.chunks", "lite_jax.lite.functions", "lite_jax.lite.operators",
    "lite_jax.lite.sampling", "lite_jax.lite.transforms",
}  # fmt: skip


def loaded(code):
    """The modules that each line of the code adds, in a process of its own."""
    program = """
import json, sys
added, before = [], set(sys.modules)
for line in sys.argv[1].splitlines():
    try:
        exec(line)
    except SystemExit:
        pass
    added.append(sorted(set(sys.modules) - before))
    before = set(sys.modules)
print("\\n" + json.dumps(added))
"""
    found = subprocess.run(
        [sys.executable, "-c", program, code],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [set(names) for names in json.loads(found.stdout.splitlines()[-1])]


def roots(names):
    return {name.split(".")[0] for name in names}


def test_the_gradient_needs_jax_numpy_and_its_own_modules():
    _, added, rest = loaded(
        "import jax, jax.numpy, numpy\n"
        "from lite_jax import lite_grad\n"
        "from lite_jax import protonets"
    )
    assert {name for name in added if name.startswith("lite_jax")} == GRADIENT
    assert roots(added) - set(sys.stdlib_module_names) <= {"jax", "numpy", "lite_jax"}
    assert "flax" in roots(rest)  # so the list above could be longer


HEAVY = {"jax", "flax", "orbax", "optax", "scipy", "PIL", "tensorboardX"}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], [], ["--config=configs/nope.py"],
     ["--config=configs/protonets.py", "--config.foo=1"],
     ["--config=configs/protonets.py", "--config.train.steps=many"],
     ["--config=configs/protonets.py:digts"]],
    ids=["help", "no config", "no such file", "unknown setting", "bad value",
         "unknown variant"],
)  # fmt: skip
def test_help_and_mistakes_of_a_run_load_nothing_heavy(arguments):
    _, added = loaded(
        f"import sys; sys.argv = ['main', *{arguments}]\n"
        "import runpy; runpy.run_module('lite_jax.main', run_name='__main__')"
    )
    assert "ml_collections" in roots(added)
    assert not HEAVY & roots(added)


def test_help_of_the_command_loads_nothing_heavy():
    _, *added = loaded(
        "import lite_jax.cli.command\n"
        + "\n".join(
            f"lite_jax.cli.command.main({arguments})"
            for arguments in (
                ["--help"],
                ["adapt", "--help"],
                ["predict", "--help"],
                ["doctor", "--help"],
                ["train", "--help"],
            )
        )
    )
    assert len(added) == 5 and not any(HEAVY & roots(names) for names in added)
    assert "absl" in roots(added[-1])  # the flags of `lite_jax.main` were read


def test_formats_of_the_help_are_those_that_can_be_written():
    assert tuple(sorted(FORMATS)) == command._FORMATS


LAZY = [lite_jax, lite_jax.data]


def module_of(package):
    """Return `{public name: its module, relative to the package}`."""
    return {x: name for name, names in package._MODULES.items() for x in names}


@pytest.mark.parametrize("package", LAZY, ids=lambda package: package.__name__)
def test_every_public_name_is_loaded_when_asked_for(package):
    for name, module in module_of(package).items():
        whole = importlib.import_module(f"{package.__name__}.{module}")
        assert getattr(package, name) is getattr(whole, name)
    names: dict = {}
    exec(f"from {package.__name__} import *", names)
    assert set(package.__all__) <= set(names)
    assert sorted(module_of(package)) == sorted(package.__all__)
    assert set(package.__all__) <= set(dir(package))


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'lite_gard'"):
        lite_jax.lite_gard  # noqa: B018
    assert not hasattr(lite_jax, "no.module")


def test_modules_are_attributes_and_names_are_listed_before_they_are_loaded():
    first, added = loaded(
        "import lite_jax; assert set(lite_jax.__all__) <= set(dir(lite_jax))\n"
        "lite_jax.nn.conv4; lite_jax.data.folder"
    )
    assert {name for name in first if name.startswith("lite_jax")} == {"lite_jax"}
    assert {"lite_jax.nn", "lite_jax.data"} <= added


@pytest.mark.parametrize("package", LAZY, ids=lambda package: package.__name__)
def test_type_checkers_see_the_same_names(package):
    tree = ast.parse(Path(package.__file__).read_text())
    typed = {
        alias.name: node.module.removeprefix(f"{package.__name__}.")
        for branch in tree.body
        if isinstance(branch, ast.If)
        for node in branch.body
        for alias in node.names
    }
    assert typed == module_of(package)
