"""Every config file: loads, locks, builds and trains in its smoke size."""

import functools

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict
from runs import CONFIGS, config_of, load_config, one_block, use_one_block

from lite_jax import UserError
from lite_jax.apps.programs import PROGRAMS, load
from lite_jax.apps.reweight.run import run_reweighting
from lite_jax.apps.rl.run import run_policy
from lite_jax.run import build_backbone, build_learner, configs, evaluate, train
from lite_jax.run.configs import read_settings
from lite_jax.run.settings import Settings
from lite_jax.run.train import train_and_evaluate

NAMES = sorted(p.stem for p in CONFIGS.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_config_is_locked_and_complete(name):
    config = config_of(name)
    with pytest.raises((AttributeError, KeyError)):
        config.no_such_setting = 1
    with pytest.raises(AttributeError):
        config.train.stepz = 1
    read_settings(config, load(PROGRAMS[config.program].settings))  # nothing unknown


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda c: c.train.update({"stepz": 7}), "unknown setting 'train.stepz'; did"),
        (lambda c: c.train.__delattr__("steps"), "train.steps is missing"),
        (lambda c: c.__setattr__("rl", 3), "unknown setting 'rl'"),
        (
            lambda c: c.train.__setattr__("steps", None),
            "train.steps=None: expec",
        ),
        (lambda c: c.optimizer.__setattr__("learning_rate", float("inf")), "=inf: exp"),
        (lambda c: c.test.__setattr__("episodes", {}), "test.episodes"),
        (lambda c: c.test.episodes.__setattr__("a", 5), "test.episodes.a=5: expected"),
        (
            lambda c: c.train.episode.update({"querry": 7}),
            "mean 'train.episode",
        ),
        (
            lambda c: c.train.episode.__setattr__("way", ("5", "a")),
            "way=.*whole",
        ),
        (lambda c: c.inner.__setattr__("norm_gradient", "foo"), "exact or bfloat16 or"),
        (lambda c: c.__setattr__("seed", 2**70), "seed=.*expected 0 to"),
        (lambda c: c.__setattr__("valid", 3), "valid=3: expected a section"),
    ],
)
def test_a_configuration_that_is_none_is_refused_by_the_setting(change, message):
    config = configs.base_config()
    with config.ignore_type():
        change(config)
    with pytest.raises(UserError, match=message):
        read_settings(config, Settings)


def test_other_objects_than_configurations_are_refused():
    for other in ({}, None, load_config("pmeta_rl")):
        with pytest.raises(UserError, match="expected a ConfigDict or Settings"):
            read_settings(other, Settings)


def test_settings_and_configurations_are_two_forms_of_the_same():
    for program in PROGRAMS.values():
        kind = load(program.settings)
        assert read_settings(configs.as_config(kind()), kind) == kind()
    for episode in (configs.variable_episode(), configs.orbit_episode()):
        config = configs.base_config()
        config.train.episode = episode
        assert configs.as_config(read_settings(config, Settings)) == config


PROGRAM_OF = {name: load_config(name).program for name in NAMES}
REWEIGHTING = [name for name, x in PROGRAM_OF.items() if x == "reweighting"]
POLICIES = [name for name, x in PROGRAM_OF.items() if x == "policies"]
LEARNERS = sorted(set(NAMES) - {*REWEIGHTING, *POLICIES})


@pytest.mark.parametrize("name", REWEIGHTING)
def test_smoke_variant_of_a_reweighting_job_runs(name, tmp_path, as_users_run_it):
    config = load_config(
        name, "smoke", train__steps=2, reweight__keep="0.5", reweight__train_size=50,
    )  # fmt: skip
    table = run_reweighting(config, tmp_path)
    assert "learned weights" in table
    assert (tmp_path / "weights.npy").is_file()


@pytest.mark.parametrize("name", POLICIES)
def test_smoke_variant_of_a_policy_runs(name, tmp_path, as_users_run_it):
    config = load_config(name, "maml,smoke", train__steps=2, rl__depth=1)
    assert "after adaptation" in run_policy(config, tmp_path)
    assert (tmp_path / "checkpoints/best").is_dir()


@pytest.mark.parametrize("name", LEARNERS)
def test_backbone_of_a_config_takes_its_images(name, as_users_run_it):
    config = load_config(name, "synthetic")
    backbone, size = (
        build_backbone.make_backbone(config.backbone),
        config.data.image_size,
    )
    image = jax.ShapeDtypeStruct((size, size, 3), jnp.uint8)
    params = jax.eval_shape(lambda key: backbone.init(key, image), jax.random.key(0))
    assert set(params) == {"input", *(f"blocks.{i}" for i in range(4))}


@pytest.fixture(scope="module")
def small_runs(as_users_run_it):
    """One block in place of four in Conv-4, and of five in CNAPs' set encoder.

    What scores tasks is compiled once for a learner, and once for raw pixels.
    """
    pixels = build_learner.make_baseline(load_config())
    scorer = functools.cache(evaluate.make_scorer)
    with pytest.MonkeyPatch.context() as patch:
        use_one_block(patch)
        encoder = functools.partial(one_block, film=False)
        patch.setattr(build_learner.nn, "set_encoder", encoder)
        patch.setattr(build_learner, "make_baseline", lambda config: pixels)
        patch.setattr(train, "make_scorer", scorer)
        patch.setattr(evaluate, "make_scorer", scorer)
        yield


def train_a_step(name, variants, workdir):
    """Train by a config for one step, on one task; test on a task of each kind."""
    episode = configs.episode((2, 2), (1, 1), 1)
    known = load_config(name, variants)
    config = load_config(
        name, variants,
        data__image_size=8, backbone__width=8, inner__steps=1, hypergrad__steps=1,
        gradient__num_backprop=1, train__tasks_per_step=1, train__batch_size=4,
        train__episode=episode, valid__tasks=1, valid__episode=episode, test__tasks=1,
        train__steps=min(known.train.steps, 1),
        test__episodes=ConfigDict(dict.fromkeys(known.test.episodes, episode)),
    )  # fmt: skip
    results = train_and_evaluate(config, workdir)
    assert results and set(results) == set(config.test.episodes)
    for found in results.values():
        assert set(found) == {config.learner, "raw pixels"}
        assert all(0 <= x.mean <= 1 and x.num_tasks == 1 for x in found.values())
    assert (workdir / "backbone.safetensors").is_file()


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.usefixtures("small_runs")
def test_smoke_variant_runs_on_synthetic_data(name, tmp_path):
    train_a_step(name, "synthetic,smoke", tmp_path)


@pytest.mark.parametrize("variant", ["anil", "boil", "mamlpp", "fomaml"])
@pytest.mark.usefixtures("small_runs")
def test_inner_rules_run(variant, tmp_path):
    train_a_step("maml", f"synthetic,{variant},smoke", tmp_path)


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
