"""Every config file: loads, locks, builds and trains in its smoke size."""

import pytest
from runs import CONFIGS, load_config

from lite_jax import UserError, defaults
from lite_jax.reweight import run_reweighting
from lite_jax.rl import run_policy
from lite_jax.train import train_and_evaluate

NAMES = sorted(p.stem for p in CONFIGS.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_config_is_locked_and_complete(name):
    config = load_config(name)
    with pytest.raises((AttributeError, KeyError)):
        config.no_such_setting = 1
    with pytest.raises(AttributeError):
        config.train.stepz = 1
    assert set(config) == set(defaults.base_config())


REWEIGHTING = [name for name in NAMES if load_config(name).reweight.job]


@pytest.mark.parametrize("name", REWEIGHTING)
def test_smoke_variant_of_a_reweighting_job_runs(name, tmp_path, as_users_run_it):
    table = run_reweighting(load_config(name, "smoke"), tmp_path)
    assert "learned weights" in table
    assert (tmp_path / "weights.npy").is_file()


POLICIES = [name for name in NAMES if load_config(name).rl.environment]


@pytest.mark.parametrize("name", POLICIES)
def test_smoke_variant_of_a_policy_runs(name, tmp_path, as_users_run_it):
    assert "after adaptation" in run_policy(load_config(name, "maml,smoke"), tmp_path)
    assert (tmp_path / "checkpoints/best").is_dir()


@pytest.mark.parametrize("name", sorted(set(NAMES) - {*REWEIGHTING, *POLICIES}))
def test_smoke_variant_runs_on_synthetic_data(name, tmp_path, as_users_run_it):
    config = load_config(
        name, "synthetic,smoke",
        data__image_size=16, backbone__width=8, inner__steps=2, train__batch_size=8,
    )  # fmt: skip
    results = train_and_evaluate(config, tmp_path)
    assert set(results) == set(config.test.episodes)
    assert (tmp_path / "backbone.safetensors").is_file()


@pytest.mark.parametrize("variant", ["anil", "boil", "mamlpp", "fomaml"])
def test_inner_rules_run(variant, tmp_path, as_users_run_it):
    config = load_config(
        "maml", f"synthetic,{variant},smoke",
        data__image_size=16, backbone__width=8, inner__steps=2,
    )  # fmt: skip
    assert set(train_and_evaluate(config, tmp_path)) == set(config.test.episodes)


@pytest.mark.parametrize("name", ["cnaps", "protonets", "simple_cnaps"])
def test_the_paper_s_recipe(name):
    config = load_config(name, "paper")
    assert config.train.steps * config.train.tasks_per_step == 10_000
    assert (config.data.image_size, config.backbone.name) == (224, "efficientnet_b0")
    assert (config.gradient.num_backprop, config.gradient.chunk_size) == (40, 40)
    spec = config.train.episode
    assert (tuple(spec.way), spec.query, spec.max_support) == ((5, 50), 10, 500)
    assert config.optimizer.learning_rate == 1e-3


@pytest.mark.parametrize("name", ["cnaps", "maml", "protonets", "simple_cnaps"])
def test_lite_is_at_work_in_every_variant(name):
    for variant in ("", "digits", "omniglot", "folder", "synthetic"):
        config = load_config(name, variant)
        spec = config.train.episode
        assert config.gradient.estimator == "lite"
        assert config.gradient.num_backprop < spec.way[0] * spec.shot[0]


def test_a_run_is_named_after_its_variants():
    assert (
        load_config("simple_cnaps", "folder,smoke").name == "simple_cnaps_folder_smoke"
    )


def test_unknown_variant_is_named():
    with pytest.raises(UserError, match="'smoek'; did you mean 'smoke'"):
        load_config("protonets", "digits,smoek")


def test_equal_arguments_give_equal_configs_and_no_shared_state():
    first = load_config("protonets", "digits", train__steps=3)
    assert load_config("protonets", "digits").train.steps != 3
    assert first.train.steps == 3
