import pytest
from runs import tiny_config

from lite_jax import UserError
from lite_jax.workdir import check_same, claim, read_config


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
    with pytest.raises(UserError, match="config.json is not JSON .* another workdir"):
        claim(tmp_path, tiny_config())
    assert path.read_text() == "{half"
