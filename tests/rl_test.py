"""Policies that adapt: densities, advantages, inner steps, trust regions, runs."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners import filled
from runs import after_step, load_config, terminate
from scipy import integrate, stats

from lite_jax import UserError, nn
from lite_jax.apps.rl import run
from lite_jax.apps.rl.environments import navigation
from lite_jax.apps.rl.episodes import Episodes, advantages, masked_mean
from lite_jax.apps.rl.half_cheetah import half_cheetah
from lite_jax.apps.rl.meta_policy import MetaPolicy, Played
from lite_jax.apps.rl.policy import Gaussian, Policy
from lite_jax.apps.rl.run import evaluate_policy, run_policy
from lite_jax.apps.rl.trust_region import TrustRegion, trust_region_step
from lite_jax.files import read_rows
from lite_jax.learners import inner_rules
from lite_jax.pmeta.attention import Attention
from lite_jax.pmeta.rule import p_meta
from lite_jax.run.preemption import Preempted

POLICY = Policy(nn.mlp(6, 2), 3, 2)
RULES = {
    "maml": inner_rules.sgd(0.1),
    "anil": inner_rules.anil(0.1),
    "boil": inner_rules.boil(0.1),
    "mamlpp": inner_rules.learned_sgd(0.1),
    "steps_only": p_meta(0.1, penalty=0.3),
    # without a cut, what attention gives is smooth, and differences can be taken of it
    "p_meta": p_meta(0.1, attention=Attention(0.0, 0.0), each=True),
}


def met_episodes(seed, episodes=3, horizon=5):
    rng = np.random.default_rng(seed)
    ends = rng.integers(2, horizon + 1, episodes)
    mask = np.arange(horizon)[None] < ends[:, None]
    shape = (episodes, horizon)
    return Episodes(
        jnp.asarray(rng.normal(size=(*shape, 3))),
        jnp.asarray(rng.normal(size=(*shape, 2))),
        jnp.asarray(rng.normal(size=shape) * mask),
        jnp.asarray(mask),
    )


def initial(learner, seed=0):
    with jax.numpy_dtype_promotion("standard"):
        shapes = jax.eval_shape(learner.init, jax.random.key(0))
    params = filled(shapes, seed, float)
    sizes = params.get("inner_rule", {})
    sizes = jax.tree.map(lambda x: 0.1 + 0.05 * jnp.abs(x), sizes)
    return params | ({"inner_rule": sizes} if sizes else {})


def test_density_and_divergence_are_those_of_normal_distributions():
    rng = np.random.default_rng(0)
    means, deviations = rng.normal(size=(2, 4, 2)), rng.uniform(0.5, 2, (2, 2))
    first, second = (
        Gaussian(jnp.asarray(mean), jnp.log(jnp.asarray(deviation)))
        for mean, deviation in zip(means, deviations, strict=True)
    )
    actions = rng.normal(size=(4, 2))
    expected = stats.norm.logpdf(actions, means[0], deviations[0]).sum(1)
    np.testing.assert_allclose(first.log_density(jnp.asarray(actions)), expected)

    def divergence(n, a):
        ours, others = (
            stats.norm(mean[n, a], deviation[a])
            for mean, deviation in zip(means, deviations, strict=True)
        )

        def integrand(x):
            return ours.pdf(x) * (ours.logpdf(x) - others.logpdf(x))

        return integrate.quad(integrand, -15, 15)[0]

    expected = [sum(divergence(n, a) for a in range(2)) for n in range(4)]
    np.testing.assert_allclose(first.divergence(second), expected, rtol=1e-6)
    np.testing.assert_allclose(first.divergence(first), np.zeros(4), atol=1e-15)


def test_actions_are_drawn_with_the_policy_s_mean_and_deviation(key):
    drawn = Gaussian(jnp.full((20_000, 2), 0.5), jnp.log(jnp.array([0.1, 2.0])))
    actions = np.asarray(drawn.draw(jax.random.normal(key, (20_000, 2))))
    np.testing.assert_allclose(actions.mean(0), [0.5, 0.5], atol=0.06)
    np.testing.assert_allclose(actions.std(0), [0.1, 2.0], rtol=0.03)


@pytest.mark.parametrize("gae_lambda", [1.0, 0.7])
def test_advantages_are_those_of_the_definition(gae_lambda):
    episodes, discount = met_episodes(0), 0.9
    seen, rewards, mask = (
        np.asarray(x) for x in (episodes.observations, episodes.rewards, episodes.mask)
    )
    rows, targets, places = [], [], []
    for e, t in zip(*np.nonzero(mask), strict=True):
        later = discount ** np.arange(rewards.shape[1] - t)
        time = t / 100
        rows.append([*seen[e, t], *seen[e, t] ** 2, time, time**2, time**3, 1.0])
        targets.append((rewards[e, t:] * later).sum())
        places.append((e, t))
    features, targets = np.array(rows), np.array(targets)
    gram = features.T @ features / len(rows) + 1e-5 * np.eye(features.shape[1])
    weights = np.linalg.solve(gram, features.T @ targets / len(rows))
    values = np.zeros(np.add(rewards.shape, (0, 1)))
    for place, value in zip(places, features @ weights, strict=True):
        values[place] = value
    expected = np.zeros(rewards.shape)
    for e, t in places:
        for k in range(t, mask[e].sum()):
            surprise = rewards[e, k] + discount * values[e, k + 1] - values[e, k]
            expected[e, t] += (discount * gae_lambda) ** (k - t) * surprise
    expected = (expected - expected[mask].mean()) / expected[mask].std() * mask
    found = jax.jit(advantages)(episodes, discount=discount, gae_lambda=gae_lambda)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def slope(function, params, direction, step=1e-5):
    """The derivative along a direction, by central differences."""

    def at(way):
        moved = jax.tree.map(
            lambda x, d: np.asarray(x) + way * np.asarray(d), params, direction
        )
        return function(moved)

    return float(at(step) - at(-step)) / (2 * step)


def along(gradient, direction):
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    return float(sum(np.vdot(g, d) for g, d in pairs))


def test_a_plain_inner_step_follows_the_policy_gradient():
    learner = MetaPolicy(POLICY, inner_rules.sgd(0.5))
    params, episodes = initial(learner), met_episodes(1)
    better = jax.jit(advantages)(episodes)

    @jax.jit
    def expected_return(policy):
        drawn = POLICY.distribution(policy, episodes.observations)
        gains = drawn.log_density(episodes.actions) * better
        return masked_mean(gains, episodes.mask)

    adapted = jax.jit(learner.adapt)(params, (episodes,))
    moved = jax.tree.map(lambda a, x: (np.asarray(a) - x) / 0.5, adapted, params)
    direction = filled(params, 2) | {"log_std": jnp.zeros(2)}
    expected = slope(expected_return, params, direction)
    assert along(moved, direction) == pytest.approx(expected, rel=1e-7)
    np.testing.assert_array_equal(adapted["log_std"], params["log_std"])


@pytest.mark.parametrize("name", ["anil", "boil"])
def test_partial_rules_leave_the_rest_as_it_is(name):
    learner = MetaPolicy(POLICY, RULES[name])
    params = initial(learner)
    adapted = jax.jit(learner.adapt)(params, (met_episodes(1),))
    same = {
        part: all(
            jax.tree.leaves(jax.tree.map(np.array_equal, adapted[part], params[part]))
        )
        for part in ("backbone", "head")
    }
    assert same == {"backbone": name == "anil", "head": name == "boil"}


@pytest.mark.parametrize(
    ("name", "steps"), [("maml", 1), ("p_meta", 1), *((name, 2) for name in RULES)]
)
def test_the_outer_gradient_goes_through_the_inner_steps(name, steps):
    learner = MetaPolicy(POLICY, RULES[name], steps)
    params = initial(learner)
    inner = tuple(met_episodes(seed) for seed in range(1, 1 + steps))
    outer = met_episodes(9)
    other = POLICY.distribution(initial(learner, seed=5), outer.observations)
    played = Played(inner, outer, other)
    run = jax.jit(jax.value_and_grad(learner.loss))
    gradient = run(params, played)[1]
    direction = filled(params, 2)
    expected = slope(lambda p: run(p, played)[0], params, direction)
    assert along(gradient, direction) == pytest.approx(expected, rel=1e-6)


def test_attention_looks_at_each_episode_alone():
    rule = p_meta(0.1, attention=Attention(0.3, 0.0), each=True)
    learner, episodes = MetaPolicy(POLICY, rule), met_episodes(3)
    params, architecture = initial(learner), POLICY.network.describe((3,), 2)
    better = jax.jit(advantages)(episodes)
    mask = episodes.mask.astype(float)

    def loss(backbone, index):
        def features(backbone, observations):
            counted, modules = mask[index], params["inner_features"]
            return rule.features(architecture, modules, backbone, observations, counted)

        policy = params | {"backbone": backbone}
        drawn = POLICY.distribution(policy, episodes.observations[index], features)
        gains = drawn.log_density(episodes.actions[index]) * better[index]
        return -(gains * mask[index]).sum() / mask.sum()

    gradient = jax.jit(jax.grad(loss))
    each = [
        np.asarray(gradient(params["backbone"], index)["layers.1"]["kernel"])
        for index in range(len(mask))
    ]
    for own in each:  # ρ = 0.3 cuts 2 of 6 channels or more
        assert (own == 0).all(1).sum() >= 2
    adapted = jax.jit(learner.adapt)(params, (episodes,))
    size = params["inner_rule"]["backbone"]["layers.1"][0]
    expected = params["backbone"]["layers.1"]["kernel"] - size * sum(each)
    found = adapted["backbone"]["layers.1"]["kernel"]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def step_program(loss, divergence, settings):
    """A trust-region step, compiled as a whole."""
    return jax.jit(
        functools.partial(trust_region_step, loss, divergence, settings=settings)
    )


def test_a_trust_region_step_is_exact_where_loss_and_divergence_are_quadratic():
    rng = np.random.default_rng(0)
    bends = rng.normal(size=(3, 4, 4))
    bends = jnp.asarray(bends @ bends.transpose(0, 2, 1) + np.eye(4))
    slopes = jnp.asarray(rng.normal(size=(3, 4)))
    start = jnp.asarray(rng.normal(size=4))

    def loss(params, task):
        return jnp.vdot(task[1], params["x"])

    def divergence(params, task):
        moved = params["x"] - start
        return 0.5 * jnp.vdot(moved, task[0] @ moved)

    settings = TrustRegion(0.02, solver_steps=20, damping=0.0, trials=3)
    step = step_program(loss, divergence, settings)
    params, outcome = step({"x": start}, (bends, slopes))
    bend, slope = np.asarray(bends).mean(0), np.asarray(slopes).mean(0)
    direction = np.linalg.solve(bend, slope)
    full = -np.sqrt(2 * 0.02 / (slope @ direction)) * direction
    # the first trial is exactly at the bound, on one side of it or the other
    trials = int(outcome.trials)
    assert trials in (1, 2)
    expected = np.asarray(start) + 0.8 ** (trials - 1) * full
    np.testing.assert_allclose(params["x"], expected, rtol=1e-9)
    assert outcome.divergence == pytest.approx(0.02 * 0.64 ** (trials - 1))
    assert outcome.change == pytest.approx(slope @ (expected - np.asarray(start)))


def test_a_step_that_would_not_lower_the_loss_is_not_taken():
    def rises(params, task):
        return jnp.abs(params["x"]).sum() + 0 * task

    def divergence(params, task):
        return 0.5 * ((params["x"] - 1e-6) ** 2).sum() + 0 * task

    start = {"x": jnp.full(2, 1e-6)}
    settings = TrustRegion(1.0, trials=4)
    found, outcome = step_program(rises, divergence, settings)(start, jnp.ones(2))
    np.testing.assert_array_equal(found["x"], start["x"])
    assert outcome.trials == 5 and outcome.change == 0 and outcome.divergence == 0


def test_nothing_goes_below_its_floor_and_the_rest_goes_on():
    bend = jnp.array([[2.0, 1.9], [1.9, 2.0]])

    def loss(params, task):
        return params["size"] + params["other"] + 0 * task[1]

    def divergence(params, task):
        start, weight = task
        moved = jnp.stack([params[k] - start[k] for k in ("size", "other")])
        return 0.5 * moved @ bend @ moved + 0 * weight

    settings = TrustRegion(1.0, damping=0.0)
    floor = {"size": jnp.array(0.0), "other": jnp.array(-jnp.inf)}
    step = step_program(loss, divergence, settings)
    for size in (0.1, 0.0):
        start = {"size": jnp.array(size), "other": jnp.array(0.0)}
        tasks = jax.tree.map(lambda x: jnp.stack([x, x]), start), jnp.ones(2)
        found, outcome = step(start, tasks, floor=floor)
        assert found["size"] == 0 and found["other"] < -0.5
        assert outcome.change < -0.5
    # on its floor, it takes no part: the other goes as far as it may alone
    trials = int(outcome.trials)
    assert found["other"] == pytest.approx(-(0.8 ** (trials - 1)))


def walk(actions, goal):
    """Play given actions, one an episode and step, by a policy that has them."""
    actions = jnp.asarray(actions)
    steps = len(actions)
    kernel = jnp.zeros((2, 2))
    params = {
        "backbone": {},
        "head": {"weights": kernel, "biases": actions[0]},
        "log_std": jnp.full(2, -jnp.inf),
    }
    policy = Policy(nn.mlp(2, 0), 2, 2)
    params = jax.tree.map(lambda x: x[None], params)
    key = jax.random.key(0)
    goals = jnp.asarray(goal)[None]
    with jax.numpy_dtype_promotion("standard"):
        return navigation().play(policy, params, goals, key, 1, steps)


def test_navigation_moves_pays_and_ends():
    met = walk([[0.5, -3.0]] * 6, [0.1, -0.2])
    seen = np.asarray(met.observations)[0, 0]
    np.testing.assert_allclose(seen[:3], [[0, 0], [0.05, -0.1], [0.1, -0.2]], atol=1e-5)
    rewards, mask = np.asarray(met.rewards)[0, 0], np.asarray(met.mask)[0, 0]
    first = -np.hypot(0.05, 0.1)
    np.testing.assert_allclose(rewards, [first, 0, 0, 0, 0, 0], atol=1e-5)
    np.testing.assert_array_equal(mask, [True, True, False, False, False, False])
    goals = np.asarray(navigation().draw_tasks(jax.random.key(0), 1000))
    assert np.abs(goals).max() <= 0.5 and np.abs(goals.mean(0)).max() < 0.05


RATES = ("tasks_per_second", "share_of_time_waiting_for_data")
SMALL = {
    "train__steps": 4,
    "train__valid_every": 2,
    "train__tasks_per_step": 3,
    "test__tasks": 4,
    "rl__episodes": 3,
    "rl__horizon": 8,
    "rl__width": 8,
    "rl__depth": 1,
}


@pytest.fixture
def one_learner(monkeypatch):
    """Runs of equal settings have one learner, and so share its programs."""
    make_setup, made = run.make_setup, {}

    def sharing(config):
        setting = make_setup(config)
        known = config.rl, config.inner
        return setting._replace(learner=made.setdefault(known, setting.learner))

    monkeypatch.setattr(run, "make_setup", sharing)


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    tmp_path, as_users_run_it, one_learner
):
    config = load_config("pmeta_rl", **SMALL)
    whole = run_policy(config, tmp_path / "whole")
    run_policy(
        load_config("pmeta_rl", **SMALL | {"train__steps": 2}), tmp_path / "stopped"
    )
    saved = tmp_path / "stopped/config.json"
    settings = json.loads(saved.read_text())
    settings["train"]["steps"] = 4
    saved.write_text(json.dumps(settings))
    assert run_policy(config, tmp_path / "stopped") == whole
    assert evaluate_policy(config, tmp_path / "stopped") == whole
    trained = {
        name: [
            {k: v for k, v in row.items() if k not in RATES}
            for row in read_rows(tmp_path / name / "metrics.jsonl")
            if row["split"] == "train"
        ]
        for name in ("whole", "stopped")
    }
    assert [row["step"] for row in trained["whole"]] == [1, 2, 3, 4]
    assert trained["whole"] == trained["stopped"]


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_that_is_told_to_stop_saves_that_step_and_ends_as_others(
    tmp_path, as_users_run_it, one_learner, monkeypatch, step
):
    """Also between two checkpoints, where the best return is not known yet."""
    config = load_config("pmeta_rl", **SMALL)
    with monkeypatch.context() as patch:
        after_step(patch, step, terminate)
        with pytest.raises(Preempted, match=f"stopped after step {step} of 4"):
            run_policy(config, tmp_path / "stopped")
    whole = run_policy(config, tmp_path / "whole")
    assert run_policy(config, tmp_path / "stopped") == whole
    slots = [
        sorted(path.name for path in (tmp_path / name / "checkpoints/best").iterdir())
        for name in ("whole", "stopped")
    ]
    assert slots[0] == slots[1]


@pytest.mark.parametrize(
    "change", [{"rl__frame_skip": 2}, {"inner__steps": 2}, {"rl__depth": 2}]
)
def test_a_policy_is_tested_by_the_settings_that_it_was_trained_by(
    tmp_path, as_users_run_it, one_learner, change
):
    """The number of test tasks may be another."""
    small = SMALL | {"train__steps": 2}
    run_policy(load_config("pmeta_rl", **small), tmp_path)
    more = load_config("pmeta_rl", **small | {"test__tasks": 6})
    assert "6" in evaluate_policy(more, tmp_path)
    (name,) = change
    other = load_config("pmeta_rl", **small | change)
    with pytest.raises(UserError, match=name.replace("__", ".")):
        evaluate_policy(other, tmp_path)


def test_adaptation_is_learned(tmp_path, as_users_run_it):
    config = load_config(
        "pmeta_rl", "maml",
        train__steps=12, train__valid_every=4, train__tasks_per_step=10,
        test__tasks=40, rl__episodes=10, rl__horizon=30, rl__width=32,
        inner__learning_rate=0.5,
    )  # fmt: skip
    run_policy(config, tmp_path)
    rows = read_rows(tmp_path / "metrics.jsonl")
    before, after = (
        next(row for row in rows if row.get("policy") == f"{when} adaptation")
        for when in ("before", "after")
    )
    gain = after["mean"] - before["mean"]
    assert gain > after["half_width"] + before["half_width"]


def test_half_cheetah_runs(tmp_path, as_users_run_it):
    pytest.importorskip("mujoco", reason="the extra rl is not installed")
    environment = half_cheetah()
    policy = Policy(nn.mlp(4, 1), 20, 6)
    params = jax.tree.map(lambda x: jnp.stack([x, x]), policy.init(jax.random.key(0)))
    wanted = jnp.array([0.0, 2.0])
    met = environment.play(policy, params, wanted, jax.random.key(1), 3, 10)
    assert met.observations.shape == (2, 3, 10, 20) and met.mask.all()
    again = environment.play(policy, params, wanted, jax.random.key(1), 3, 10)
    jax.tree.map(np.testing.assert_array_equal, met, again)
    # the height and the torso's speed of the observations are those that were paid
    cost = 0.05 * (np.clip(met.actions, -1, 1) ** 2).sum(-1)
    speed = np.asarray(met.observations)[:, :, 1:, 8]
    paid = -np.asarray(met.rewards)[:, :, :-1] - cost[:, :, :-1]
    off = np.abs(speed - np.asarray(wanted)[:, None, None])
    assert np.corrcoef(off.ravel(), paid.ravel())[0, 1] > 0.8
    table = run_policy(load_config("pmeta_rl", "half_cheetah,maml", **SMALL), tmp_path)
    assert "after adaptation" in table


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rl__environment": "walker"}, "rl.environment"),
        ({"rl__discount": 1.5}, "rl.discount=1.5"),
        ({"rl__divergence": 0.0}, "rl.divergence=0.0"),
        ({"rl__damping": -1.0}, "rl.damping=-1.0"),
        ({"rl__episodes": 0}, "rl.episodes=0"),
        ({"inner__steps": 0}, "inner.steps=0"),
        ({"inner__attention_forward": 1.0}, "inner.attention_forward=1.0"),
        ({"inner__rule": "sgdd"}, "inner.rule"),
    ],
)
def test_settings_that_cannot_serve_are_told(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run_policy(load_config("pmeta_rl", **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()
