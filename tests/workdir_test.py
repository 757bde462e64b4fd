"""A run's folder: whose it is, and the checkpoints inside."""

from contextlib import closing

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from runs import tiny_config

from lite_jax import UserError
from lite_jax.run.checkpoint import Slot
from lite_jax.run.workdir import check_same, claim, read_config


def test_a_folder_is_claimed_once_and_recognised_after(tmp_path):
    workdir = tmp_path / "deep" / "run"
    assert read_config(workdir) is None
    claim(workdir, tiny_config())
    claim(workdir, tiny_config())
    assert read_config(workdir)["train"]["episode"]["way"] == [3, 5]
    assert [p.name for p in workdir.iterdir()] == ["config.json"]


def test_every_difference_is_named(tmp_path):
    claim(tmp_path, tiny_config())
    other = tiny_config(seed=1, train__episode__way=(3, 6))
    with pytest.raises(UserError) as error:
        claim(tmp_path, other)
    told = str(error.value)
    assert "seed is 0 there and 1 here; train.episode.way is [3, 5] there" in told
    check_same(tmp_path, read_config(tmp_path), other, ["learner", "backbone"])


def test_a_config_that_is_no_json_is_left_alone(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{half")
    with pytest.raises(UserError, match="config.json is no configuration .* another"):
        claim(tmp_path, tiny_config())
    assert path.read_text() == "{half"


# --------------------------------------------------------------------- checkpoints


def tree(level):
    """A tree of several precisions, as a run's state is."""
    return {
        "step": np.int32(level),
        "weights": {"kernel": np.full((2, 3), level + 1 / 3, np.float32)},
        "means": np.full(4, level, jnp.bfloat16),
    }


@pytest.fixture
def slot(tmp_path):
    with closing(Slot(tmp_path / "slot")) as made:
        yield made


def test_a_checkpoint_comes_back_as_it_was_saved(slot):
    assert slot.step() is None
    slot.save(3, tree(3))
    for found in (slot.restore(tree(0)), slot.restore_all()):
        chex.assert_trees_all_equal(found, tree(3), strict=True)  # and of equal dtypes


def test_a_slot_keeps_the_newest_checkpoint_alone(slot, tmp_path):
    for step in (2, 4, 9):
        slot.save(step, tree(step))
    assert slot.step() == 9
    assert [x.name for x in (tmp_path / "slot").iterdir() if x.name.isdigit()] == ["9"]
    with closing(Slot(tmp_path / "slot")) as again:
        assert again.step() == 9
        chex.assert_trees_all_equal(again.restore(tree(0)), tree(9))


def test_a_step_is_saved_once_and_an_older_one_is_an_error(slot):
    slot.save(4, tree(4))
    slot.save(4, tree(5))
    chex.assert_trees_all_equal(slot.restore(tree(0)), tree(4))
    with pytest.raises(OSError, match="checkpoint of step 3 was not saved"):
        slot.save(3, tree(3))


def other_trees():
    larger = tree(0) | {"more": np.zeros(3)}
    smaller = {name: x for name, x in tree(0).items() if name != "means"}
    wider = tree(0) | {"means": np.zeros(5, jnp.bfloat16)}
    twice = tree(0) | {"copy": tree(0)["means"]}  # the same shapes, one more often
    return {
        "more arrays": larger, "fewer arrays": smaller, "another shape": wider,
        "a shape twice": twice,
    }  # fmt: skip


@pytest.mark.parametrize("name", other_trees())
def test_a_checkpoint_of_another_tree_is_refused(name, slot):
    slot.save(1, tree(1))
    message = "slot does not fit this model .* arrays of shapes .* are needed"
    with pytest.raises(UserError, match=message):
        slot.restore(other_trees()[name])
    chex.assert_trees_all_equal(slot.restore(tree(0)), tree(1))  # nothing is pending
