"""Readers given files that are broken, or made up: an answer or a `UserError`, no more.

`python -m tests.stress.fuzz` does the same for longer. What was found stands in
`FOUND`.
"""

import json
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.stress.fuzz import (
    FOUND,
    MOST_BYTES,
    READERS,
    damaged,
    json_like,
    run,
    samples,
)

QUICK = settings(  # the same files every time: what is new is the experiment's to find
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


JSON = [  # making a config up takes as long as all others together
    pytest.param(name, marks=pytest.mark.slow if name == "config" else ())
    for name, reader in READERS.items()
    if reader.is_json
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", READERS)
@QUICK
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(name, data, folder):
    whole = data.draw(st.sampled_from(samples(name)))
    run(name, data.draw(damaged(whole)), folder)


@pytest.mark.parametrize("name", JSON)
@QUICK
@given(data=st.data())
def test_json_of_any_shape_is_read_or_refused(name, data, folder):
    whole = json.loads(data.draw(st.sampled_from(samples(name))))
    run(name, json.dumps(data.draw(json_like(whole))).encode(), folder)


@pytest.mark.parametrize("name", READERS)
def test_whole_files_are_read(name, folder):
    for file in samples(name):
        assert run(name, file, folder) == "read"


@pytest.mark.parametrize(("name", "file"), FOUND)
def test_what_was_found_once_stays_mended(name, file, folder):
    tracemalloc.start()
    try:
        assert run(name, file, folder) in ("read", "refused")
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
