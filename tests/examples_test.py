"""The examples run as they are, in few steps, and do what they say."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_it_is_run(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 100
    assert f"    python examples/{path.name}\n" in text


def main_of(name):
    """The function `main` of an example."""
    path = next(path for path in EXAMPLES if path.stem == name)
    return runpy.run_path(str(path))["main"]


def test_prototypes_are_learned_in_a_loop_of_ones_own(as_users_run_it, capsys):
    before, after = main_of("prototypes_in_your_loop")(steps=300, tasks=40)
    assert 0.5 < before < after < 1
    assert "accuracy on digits never trained on" in capsys.readouterr().out
