"""The table of mutations fits the tree; `python -m tests.mutations` tries them."""

import ast
import collections
from pathlib import Path

import pytest

from tests.mutations import MUTATIONS, mutated

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda x: x.name)
def test_a_mutation_has_its_line_and_its_tests(mutation):
    source = (ROOT / mutation.file).read_text()
    changed = mutated(source, mutation)
    assert changed != source
    ast.parse(changed)  # or any test would notice it
    for test in mutation.tests:
        file, _, name = test.partition("::")
        text = (ROOT / file).read_text()
        assert not name or f"def {name.partition('[')[0]}(" in text, test


def test_there_are_five_mutations_of_each_part():
    counts = collections.Counter(x.name.partition(":")[0] for x in MUTATIONS)
    assert len(counts) == 5 and set(counts.values()) == {5}
