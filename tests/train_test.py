"""Whole runs in process: what they leave behind, resuming, compiling, stopping."""

import contextlib
import dataclasses
import errno
import functools
import json
import logging
import math
import os
import shutil
import signal
import types
from contextlib import closing

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import changed, tiny_config
from safetensors.numpy import load_file
from tqdm import tqdm

from lite_jax import Examples, Task, UserError, per_example
from lite_jax.run import (
    build_data,
    build_gradient,
    build_learner,
    evaluate,
    feed,
    parallel,
    progress,
    train,
    workdir,
)
from lite_jax.run.checkpoint import Slot
from lite_jax.run.evaluate import evaluate_checkpoint, format_results
from lite_jax.run.feed import Feed
from lite_jax.run.metrics import MetricsWriter
from lite_jax.run.preemption import Preempted
from lite_jax.run.progress import Reporter
from lite_jax.run.train import train_and_evaluate

pytestmark = pytest.mark.usefixtures("as_users_run_it")


def by_settings(make):
    """Return `make(config, …)` that makes the same of equal settings but once."""
    made = {}

    def shared(config, *rest):
        settings = dataclasses.asdict(config)
        for unused in {"valid", "test"} & set(settings):
            del settings[unused]["tasks"]
        key = json.dumps((settings, [x for x in rest if isinstance(x, int)]))
        if key not in made:
            made[key] = make(config, *rest)
        return made[key]

    return shared


@pytest.fixture(scope="module", autouse=True)
def shared_programs(as_users_run_it):
    """Let runs of equal settings share their learners, and so what is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (build_gradient, "make_grad_fn"), (build_gradient, "make_optimizer"),
            (build_learner, "make_learners"), (build_learner, "make_baseline"),
        ):  # fmt: skip
            patch.setattr(module, name, by_settings(getattr(module, name)))
        patch.setattr(train, "make_train_step", functools.cache(train.make_train_step))
        scorer = functools.cache(evaluate.make_scorer)
        patch.setattr(train, "make_scorer", scorer)
        patch.setattr(evaluate, "make_scorer", scorer)
        yield


@pytest.fixture
def untested(monkeypatch):
    """Runs end without a test of what they trained."""
    monkeypatch.setattr(train, "run_tests", lambda *args: {})


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, shared_programs):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, train_and_evaluate(tiny_config(), workdir)


@pytest.fixture
def finished(finished_run, tmp_path):
    """A copy of a finished run of `tiny_config()`, and its results."""
    workdir, results = finished_run
    return shutil.copytree(workdir, tmp_path / "run"), results


def rows(workdir, split=None):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [r for r in found if split in (None, r["split"])]


def parameters(workdir, config, slot="last"):
    sources = build_data.make_sources(config)
    learner = build_learner.make_learners(config, sources).trained
    optimizer = build_gradient.make_optimizer(config.optimizer, config.train.steps)
    params = build_learner.init_params(config, learner, sources)
    state = train.init_state(optimizer, params, learner.frozen)
    template = {"state": state, "best": np.array(0, np.float32)}
    with closing(Slot(workdir / "checkpoints" / slot)) as found:
        return found.restore(template)


def saved_step(workdir, slot="last"):
    with closing(Slot(workdir / "checkpoints" / slot)) as found:
        return found.step()


def interrupted(monkeypatch, at, action):
    """Let `action` happen before a step of training, or each of several."""
    make_train_step = train.make_train_step
    steps = [at] if isinstance(at, int) else at

    def interrupting(*args):
        step = make_train_step(*args)

        def train_step(state, *rest):
            if int(state.step) + 1 in steps:
                action()
            return step(state, *rest)

        return train_step

    monkeypatch.setattr(train, "make_train_step", interrupting)


def assert_same_run(first, second):
    config = tiny_config()
    texts = [(x / "metrics.jsonl").read_text() for x in (first, second)]
    assert texts[0] == texts[1]
    chex.assert_trees_all_equal(parameters(first, config), parameters(second, config))


def test_run_leaves_what_it_promises(finished):
    workdir, results = finished
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 6
    assert [r["step"] for r in rows(workdir, "train")] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in rows(workdir, "valid")] == [2, 4, 6]
    assert set(rows(workdir, "train")[0]) == {
        "split", "step", "loss", "accuracy", "grad_norm", "grad_norm/backbone",
    }  # fmt: skip
    assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))
    assert saved_step(workdir) == 6
    for kind in ("w5s1", "w5s5"):
        assert set(results[kind]) == {"protonets", "raw pixels"}
        assert all(
            r.num_tasks == 4 and 0 <= r.mean <= 1 for r in results[kind].values()
        )
    tested = {(r["episodes"], r["learner"]): r["mean"] for r in rows(workdir, "test")}
    assert tested["w5s5", "protonets"] == results["w5s5"]["protonets"].mean


def test_training_learns(tmp_path, untested):
    """Accuracy on training tasks, from unbiased but noisy gradients, rises clearly."""
    config = tiny_config(
        data__dataset="digits", train__steps=40, valid__tasks=0,
        train__episode__way=(10,), train__episode__shot=(1,),
        optimizer__learning_rate=1e-2, gradient__chunk_size=32,
    )  # fmt: skip
    train_and_evaluate(config, tmp_path)
    accuracies = [r["accuracy"] for r in rows(tmp_path, "train")]
    assert np.mean(accuracies[-10:]) > np.mean(accuracies[:5]) + 0.15


def test_stopped_run_ends_as_an_uninterrupted_one(finished, tmp_path, monkeypatch):
    config, (whole, _) = tiny_config(), finished

    def stop():
        raise KeyboardInterrupt

    interrupted(monkeypatch, 5, stop)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(config, tmp_path / "stopped")
    assert saved_step(tmp_path / "stopped") == 4
    monkeypatch.undo()
    # A step that was written after the checkpoint, and a line cut short by the crash.
    with (tmp_path / "stopped/metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "step": 5, "loss": 9}\n{"split": "tra')
    train_and_evaluate(config, tmp_path / "stopped")

    assert_same_run(whole, tmp_path / "stopped")


def test_finished_run_is_tested_again_without_training(finished, monkeypatch):
    workdir, results = finished

    def train_step(*args):
        raise AssertionError("a finished run is trained")

    monkeypatch.setattr(train, "make_train_step", lambda *args: train_step)
    before = (workdir / "metrics.jsonl").read_text()
    assert train_and_evaluate(tiny_config(), workdir) == results
    assert (workdir / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("stopped", [False, True], ids=["in one go", "resumed"])
@pytest.mark.parametrize("accuracies", [(0.25, 0.75, 0.5), (0.75, 0.25, 0.75)])
def test_best_parameters_are_those_of_the_first_best_validation(
    accuracies, stopped, tmp_path, monkeypatch
):
    """They are kept, and tested, whatever came after them, and before a stop."""
    left, validated, tested = list(accuracies), [], []

    def validate(params):
        validated.append(jax.device_get(params))
        return left.pop(0)

    def run_tests(config, learner, params, sources):
        tested.append(params)
        return {}

    if stopped:
        interrupted(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(train, "_make_validation", lambda *args: validate)
    monkeypatch.setattr(train, "run_tests", run_tests)
    with pytest.raises(Preempted) if stopped else contextlib.nullcontext():
        train_and_evaluate(tiny_config(), tmp_path)
    if stopped:
        train_and_evaluate(tiny_config(), tmp_path)
    place = accuracies.index(0.75)
    assert saved_step(tmp_path, "best") == 2 * (place + 1)
    chex.assert_trees_all_equal(tested, [validated[place]])
    found = [r["accuracy"] for r in rows(tmp_path, "valid")]
    assert found == list(accuracies)
    assert parameters(tmp_path, tiny_config())["best"] == 0.75


def test_the_accuracy_that_counts_is_of_the_validation_tasks(finished):
    workdir, _ = finished
    config = tiny_config()
    sources = build_data.make_sources(config)
    tasks = evaluate.split_tasks(
        config, config.valid.episode, sources("valid"), "valid", config.valid.tasks
    )
    score = evaluate.make_scorer(build_learner.make_learners(config, sources).tested, 8)
    params = jax.device_put(parameters(workdir, config)["state"].params)
    expected = np.mean([score(params, jax.device_put(task)) for task in tasks])
    found = rows(workdir, "valid")[-1]["accuracy"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found == float(np.float32(found))  # as it is compared after a stop


def test_without_validation_the_last_parameters_are_tested(tmp_path):
    train_and_evaluate(tiny_config(valid__tasks=0), tmp_path)
    assert rows(tmp_path, "valid") == []
    assert saved_step(tmp_path, "best") == 6


@pytest.mark.parametrize("estimator", ["lite", "exact", "subsample"])
def test_one_compilation_serves_all_tasks_of_a_config(estimator, tmp_path):
    """Ways 3 to 5, shots 2 to 4: every step is of another size, one program runs."""
    config = tiny_config(gradient__estimator=estimator)
    sources = build_data.make_sources(config)
    learner = build_learner.make_learners(config, sources).trained
    traces = []

    def counted(*args):
        traces.append(args)
        return build_gradient.make_grad_fn(config, learner)(*args)

    optimizer = build_gradient.make_optimizer(config.optimizer, config.train.steps)
    state = train.init_state(
        optimizer, build_learner.init_params(config, learner, sources)
    )
    load_step = Feed(config, sources("train")).step
    train_step = train.make_train_step(counted, optimizer)
    sizes, traced = set(), []
    for step in range(1, 7):
        tasks = load_step(step)
        sizes |= set(map(int, tasks.support.mask.sum(1)))
        state, _ = train_step(state, tasks, jax.random.key(0))
        traced.append(len(traces))
    assert len(sizes) > 3
    assert len(set(traced)) == 1 and train_step._cache_size() == 1


def test_one_compilation_serves_the_episodes_of_the_paper():
    """Ways 5 to 50 and up to 500 support images, one task after the other."""
    config = tiny_config(
        data__synthetic_classes=60,
        data__synthetic_images=60,
        gradient__num_backprop=40,
        gradient__chunk_size=40,
        train__tasks_per_step=1,
        train__episode__way=(5, 50),
        train__episode__shot=(1, 50),
        train__episode__query=2,
        train__episode__max_support=500,
    )
    sources = build_data.make_sources(config)
    learner = build_learner.make_learners(config, sources).trained
    optimizer = build_gradient.make_optimizer(config.optimizer, config.train.steps)
    state = train.init_state(
        optimizer, build_learner.init_params(config, learner, sources)
    )
    load_step = Feed(config, sources("train")).step
    train_step = train.make_train_step(
        build_gradient.make_grad_fn(config, learner), optimizer
    )
    ways, supports = set(), set()
    for step in range(1, 13):
        tasks = load_step(step)
        ways.add(int(tasks.support.labels.max()) + 1)
        supports.add(int(tasks.support.mask.sum()))
        state, metrics = train_step(state, tasks, jax.random.key(0))
    assert math.isfinite(metrics["loss"])
    assert min(ways) < 15 and max(ways) > 40 and max(supports) > 400
    assert train_step._cache_size() == 1


@pytest.mark.parametrize("prefetch", [1, 3])
def test_episodes_ahead_are_bounded_whatever_the_step(prefetch, monkeypatch):
    """What threads are given to load is counted, however fast they are at it."""
    config = tiny_config(train__tasks_per_step=4, data__prefetch=prefetch)
    run_ahead, given = feed.run_ahead, []

    def counted(make, numbers, **options):
        counted_numbers = (given.append(i) or i for i in numbers)
        return run_ahead(make, counted_numbers, **options)

    monkeypatch.setattr(feed, "run_ahead", counted)
    made = Feed(config, build_data.make_sources(config)("train"))
    with contextlib.closing(made.ahead(range(3, 6))) as ahead:
        for step in (3, 4):
            tasks = next(ahead)
            assert given == list(range(8, 4 * step + prefetch))
            chex.assert_trees_all_equal(tasks, made.step(step))


def test_a_run_tells_how_long_it_waited_for_data(
    tmp_path, caplog, monkeypatch, untested
):
    """By a clock that three seconds of loading and one of a step move on."""
    clock, ahead = [0.0], Feed.ahead

    def slow_feed(feed, steps):
        for tasks in ahead(feed, steps):
            clock[0] += 3
            yield tasks

    def pass_a_second():
        clock[0] += 1

    def perf_counter():
        clock[0] += 2**-20  # time never stands still
        return clock[0]

    monkeypatch.setattr(
        progress, "time", types.SimpleNamespace(perf_counter=perf_counter)
    )
    monkeypatch.setattr(Feed, "ahead", slow_feed)
    interrupted(monkeypatch, range(1, 7), pass_a_second)
    with caplog.at_level("INFO", "lite_jax"):
        train_and_evaluate(tiny_config(valid__tasks=0), tmp_path / "run")
    assert "training took 24 s with validation; " in caplog.text
    assert "waiting for data: 75.0 % of it" in caplog.text


def test_tasks_of_a_step_are_averaged():
    config = tiny_config()
    sources = build_data.make_sources(config)
    learner = build_learner.make_learners(config, sources).trained
    params = build_learner.init_params(config, learner, sources)
    grad_fn = build_gradient.make_grad_fn(config, learner)
    tasks = Feed(config, sources("train")).step(1)
    averaged = jax.jit(parallel.mean_over_tasks(grad_fn))
    mean = averaged(params, tasks, jax.random.key(0))
    one = jax.jit(grad_fn)
    keys = jax.random.split(jax.random.key(0), 2)
    each = [
        one(params, jax.tree.map(lambda x, i=i: x[i], tasks), keys[i]) for i in (0, 1)
    ]
    expected = jax.tree.map(lambda a, b: (a + b) / 2, *each)
    chex.assert_trees_all_close(mean, expected, rtol=1e-4, atol=1e-5)


def test_loss_that_is_not_finite_stops_with_the_step(tmp_path, monkeypatch):
    """Step 5 is poisoned: it is named, and the checkpoint of step 4 is kept."""
    make_train_step = train.make_train_step

    def poisoning(*args):
        step = make_train_step(*args)

        def train_step(state, *rest):
            bad = int(state.step) + 1 == 5
            state, metrics = step(state, *rest)
            return state, metrics | ({"loss": np.float32(math.nan)} if bad else {})

        return train_step

    monkeypatch.setattr(train, "make_train_step", poisoning)
    told = r"step 5, of the training tasks 8 to 9: not finite \(.*loss nan"
    with pytest.raises(UserError, match=told):
        train_and_evaluate(tiny_config(), tmp_path / "bad")
    assert [r["step"] for r in rows(tmp_path / "bad", "train")] == [1, 2, 3, 4]
    chex.assert_trees_all_equal(
        parameters(tmp_path / "bad", tiny_config())["state"].step, np.int32(4)
    )


def test_divergence_is_noticed(tmp_path):
    wild = tiny_config(optimizer__learning_rate=1e38, optimizer__schedule="constant")
    with pytest.raises(UserError, match="not finite .* Lower optimizer.learning_rate"):
        train_and_evaluate(wild, tmp_path)


def test_a_gradient_that_is_not_finite_can_be_skipped():
    config = tiny_config(optimizer__skip_not_finite=1)
    optimizer = build_gradient.make_optimizer(config.optimizer, config.train.steps)

    def grad_fn(params, task, key):
        slope = task.query.inputs
        return (slope, {"accuracy": slope}), {"w": slope * params["w"]}

    step = train.make_train_step(grad_fn, optimizer)
    state = train.init_state(optimizer, {"w": jnp.ones(2, jnp.float32)})
    found = []
    for slope in (math.nan, 1.0):
        inputs = jnp.full(1, slope, jnp.float32)
        tasks = Task(None, Examples(inputs, None, jnp.ones((1, 1), bool)))
        state, metrics = step(state, tasks, jax.random.key(0))
        found.append((np.asarray(state.params["w"]), metrics))
    np.testing.assert_array_equal(found[0][0], [1, 1])
    assert np.isnan(found[0][1]["grad_norm/w"])
    assert (found[1][0] < 1).all()


def test_as_many_steps_running_are_skipped_as_tolerated(tmp_path):
    with closing(MetricsWriter(tmp_path, 0)) as writer, tqdm(disable=True) as bar:
        report = Reporter(writer, bar, 2, tolerated=1)
        for step, loss in enumerate((1.0, math.nan, 2.0, math.inf), 1):
            report.later(step, {"loss": np.float32(loss)})
        report.now()
        report.later(5, {"loss": np.float32(math.nan)})
        with pytest.raises(UserError, match="step 5, of the training tasks 8 to 9"):
            report.now()
    assert [(r["step"], r.get("loss"), r.get("skipped")) for r in rows(tmp_path)] == [
        (1, 1.0, None), (2, None, True), (3, 2.0, None), (4, None, True),
    ]  # fmt: skip


@pytest.mark.parametrize("step", [3, 4])
def test_a_run_told_to_stop_saves_and_goes_on(step, finished, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    interrupted(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted, match=f"after step {step} of 6, which is saved"):
        train_and_evaluate(tiny_config(), tmp_path / "other")
    assert signal.getsignal(signal.SIGTERM) is before
    assert saved_step(tmp_path / "other") == step
    assert [r["step"] for r in rows(tmp_path / "other", "train")] == list(
        range(1, step + 1)
    )
    monkeypatch.undo()
    train_and_evaluate(tiny_config(), tmp_path / "other")
    assert_same_run(finished[0], tmp_path / "other")


def test_a_full_disk_leaves_the_checkpoints_before(finished, tmp_path, monkeypatch):
    save = Slot.save

    def full(slot, step, tree):
        if step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(slot, step, tree)

    monkeypatch.setattr(Slot, "save", full)
    with pytest.raises(UserError, match="No space left on device. Its checkpoints are"):
        train_and_evaluate(tiny_config(), tmp_path / "other")
    assert saved_step(tmp_path / "other") == 2
    monkeypatch.undo()
    train_and_evaluate(tiny_config(), tmp_path / "other")
    assert_same_run(finished[0], tmp_path / "other")


def test_two_runs_do_not_share_a_workdir(tmp_path):
    with workdir.occupied(tmp_path, tiny_config()):
        with pytest.raises(UserError, match="another run is at work in it"):
            train_and_evaluate(tiny_config(), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
    with workdir.occupied(tmp_path, tiny_config()):  # free again
        pass


def test_workdir_of_another_config_is_refused(finished):
    workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match="backbone.width is 8 there and 16 here"):
        train_and_evaluate(tiny_config(backbone__width=16), workdir)
    with pytest.raises(UserError, match="backbone.width is 8 there and 16 here"):
        evaluate_checkpoint(tiny_config(backbone__width=16), workdir)
    assert (workdir / "metrics.jsonl").read_text() == before


def test_evaluation_of_a_checkpoint_may_ask_for_other_tests(finished):
    config, (workdir, results) = tiny_config(), finished
    again = evaluate_checkpoint(config, workdir)
    assert again == results
    more = evaluate_checkpoint(tiny_config(test__tasks=7), workdir)
    assert more["w5s1"]["protonets"].num_tasks == 7
    table = format_results(config, again).splitlines()
    assert table[0].split()[:4] == ["test", "episodes", "protonets", "raw"]
    assert table[2].startswith("5-way 1-shot") and table[2].endswith(" 4")


def test_checkpoint_for_other_images_is_refused(finished):
    """The run is on colour images; digits are grey."""
    workdir, _ = finished
    with pytest.raises(
        UserError,
        match=r"does not fit .* \(3, 3, 3, 8\)\] where .* \(3, 3, 1, 8\)\] are needed",
    ):
        evaluate_checkpoint(tiny_config(data__dataset="digits"), workdir)


def test_evaluation_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint to evaluate: train first"):
        evaluate_checkpoint(tiny_config(), tmp_path)
    # As a run leaves it that was stopped before its first validation.
    workdir.claim(tmp_path, tiny_config())
    (tmp_path / "checkpoints/best").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no checkpoint to evaluate: train first"):
        evaluate_checkpoint(tiny_config(), tmp_path)


def test_baseline_is_the_nearest_raw_pixel_mean():
    config = tiny_config()
    task = next(
        iter(evaluate.split_tasks(
            config, config.test.episodes["w5s5"],
            build_data.make_sources(config)("test"), "t", 1,
        ))
    )  # fmt: skip
    score = evaluate.make_scorer(build_learner.make_baseline(config), chunk_size=4)
    support, query = (
        x.inputs.reshape(len(x.inputs), -1) / 255.0 for x in (task.support, task.query)
    )
    means = np.stack([support[task.support.labels == c].mean(0) for c in range(5)])
    nearest = ((query[:, None] - means[None]) ** 2).sum(-1).argmin(1)
    expected = (nearest == task.query.labels).mean()
    np.testing.assert_allclose(score({"backbone": {}}, task), expected, atol=1e-6)
    assert 0.2 < expected < 1  # neither by chance nor of necessity


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train__steps": -1}, "train.steps=-1: expected 0"),
        ({"train__tasks_per_step": 0}, "train.tasks_per_step=0"),
        ({"test__tasks": 0}, "test.tasks=0"),
        ({"data__dataset": "omniglt"}, "'omniglt'; did you mean 'omniglot'"),
        ({"data__dataset": "folder"}, "data.root=''"),
        ({"data__image_size": 8}, "16 pixels a side"),
        ({"data__image_size": 0}, "data.image_size=0"),
        ({"data__image_size": 8_000_000}, "image_size=8000000: expected 1 to 4096"),
        ({"learner": "protonet"}, "learner 'protonet'; did you mean 'protonets'"),
        ({"backbone__name": "conv5"}, "did you mean 'conv4'"),
        ({"backbone__norm": "batch"}, "backbone.norm='batch'.*depend on the others"),
        ({"backbone__norm": "instance"}, "backbone.norm 'instance'"),
        ({"backbone__weights": "nowhere.safetensors"}, "weights=nowhere.*no such file"),
        ({"backbone__frozen": True}, "backbone.frozen=True: .*nothing to learn"),
        ({"backbone__name": "pixels"}, "no parameters: .*choose another backbone"),
        ({"optimizer__clip_norm": -1.0}, "optimizer.clip_norm=-1"),
        ({"optimizer__learning_rate": math.nan}, "learning_rate=nan: expected a fin"),
        ({"seed": -1}, "seed=-1: expected 0 to"),
        ({"backbone__name": "vit_s", "data__image_size": 40}, "a multiple of 16"),
        ({"backbone__name": "pixels", "learner": "cnaps"}, "no FiLM places"),
        ({"learner": "maml", "inner__steps": 0}, "inner.steps=0.*1 or more"),
        ({"protonets__scale": 0.0}, "scale=0.0.*positive"),
        (
            {"learner": "maml", "gradient__sampling": "sensitivity"},
            "MAML sums gradients: choose stratified",
        ),
        ({"learner": "maml", "inner__rule": "sdg"}, "'sdg'; did you mean 'sgd'"),
        ({"learner": "maml", "inner__rule": "boil"}, "learned_head=True"),
        ({"learner": "finetuner", "inner__optimizer": "adm"}, "did you mean 'adam'"),
        ({"learner": "classifier", "train__batch_size": 0}, "train.batch_size=0"),
        ({"data__augment": "cropp"}, "'cropp'; did you mean 'crop'"),
        ({"optimizer__weight_decay": -1.0}, "optimizer.weight_decay=-1.0"),
        ({"gradient__estimator": "light"}, "'light'; did you mean 'lite'"),
        ({"gradient__sampling": "unifrom"}, "'unifrom'; did you mean 'uniform'"),
        ({"gradient__num_backprop": 0}, "gradient.num_backprop=0"),
        ({"gradient__chunk_size": 0}, "gradient.chunk_size=0"),
        ({"optimizer__schedule": "linear"}, "optimizer.schedule 'linear'"),
        ({"optimizer__learning_rate": 0.0}, "optimizer.learning_rate=0.0"),
        ({"train__episode__way": (3, 200)}, "train.episode.way=200 is more than the"),
        ({"test__episodes__w5s1__query": 40}, "'pattern 40' has 40 images, too few"),
        ({"valid__episode__way": (1, 5)}, "valid.episode.way=1,5"),
        ({"train__episode__way": (3, 4, 5)}, r"way=\(3, 4, 5\): expected one whole"),
    ],
)  # fmt: skip
def test_setting_that_cannot_serve_is_refused_before_anything_is_written(
    changes, message, tmp_path
):
    with pytest.raises(UserError, match=message):
        train_and_evaluate(tiny_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_h_above_a_fixed_n_is_refused_and_above_a_varying_one_clipped(tmp_path, caplog):
    fixed = {"train__episode__way": (3, 3), "train__episode__shot": (2, 2)}
    config = tiny_config(gradient__num_backprop=7, **fixed)
    with pytest.raises(UserError, match="num_backprop=7 is more than the 6 support"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with caplog.at_level(logging.WARNING, "lite_jax"):
        set_sum = build_gradient.make_set_sum(
            tiny_config(gradient__num_backprop=99, gradient__sampling="uniform")
        )
    assert (
        "num_backprop=99 is more than the 6 support images of the smallest"
        in caplog.text
    )
    # A larger H than the 20 images that a task may have would be warned of here.
    x, mask = jnp.arange(20.0), jnp.arange(20) < 7
    total = functools.partial(set_sum, per_example(lambda a, x: a * x))
    assert jax.grad(total)(1.0, x, jax.random.key(0), mask) == 21


def test_unwritable_workdir_is_explained(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file/run cannot be written"):
        train_and_evaluate(tiny_config(), tmp_path / "file" / "run")
    shutil.rmtree(tmp_path, ignore_errors=True)


def updates_of(gradients, **settings):
    """Return an update for each gradient, as the optimiser of the settings has it."""
    config = tiny_config(optimizer__learning_rate=0.1, **settings)
    optimizer = build_gradient.make_optimizer(config.optimizer, config.train.steps)
    params = {"w": np.zeros(4, np.float32)}
    state, found = optimizer.init(params), []
    for gradient in gradients:
        given = {"w": np.full(4, gradient, np.float32)}
        updates, state = optimizer.update(given, state, params)
        found.append(np.abs(updates["w"]))
    return np.stack(found)


def test_optimizer_anneals():
    sizes = updates_of([9.0] * 7)[:, 0]
    np.testing.assert_allclose(sizes[0], 0.1, rtol=1e-3)
    assert sizes[-1] == 0 and (np.diff(sizes) < 0).all()


def test_optimizer_clips_by_the_norm_of_the_whole_gradient():
    """A norm of 18 becomes 0.5, one of 0.4 stays; Adam alone forgets the scale."""
    clipped = updates_of([9.0, 0.2], optimizer__clip_norm=0.5)
    np.testing.assert_allclose(clipped, updates_of([0.25, 0.2]), rtol=1e-5)
    assert (np.abs(clipped[1] / updates_of([9.0, 0.2])[1] - 1) > 0.1).all()


def test_weight_decay_leaves_statistics_and_norms_as_they_are():
    config = tiny_config(optimizer__weight_decay=0.1, optimizer__schedule="constant")
    sources = build_data.make_sources(config)
    learner = build_learner.make_learners(config, sources).trained
    params = build_learner.init_params(config, learner, sources)
    optimizer = build_gradient.make_optimizer(config.optimizer, config.train.steps)
    nothing = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(nothing, optimizer.init(params), params)
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    assert {"kernel", "bias", "scale"} <= {path[-1].key for path, _ in leaves}
    for path, update in leaves:
        assert np.any(update != 0) == (path[-1].key == "kernel"), path


def test_a_single_number_fixes_the_way():
    config = tiny_config(train__episode__way=(4,))
    assert build_data.make_spec(config.train.episode).way == (4, 4)


def with_one_test(**changes):
    """Return a tiny run of two steps without validation, and one kind of test."""
    small = {"train__steps": 2, "valid__tasks": 0, "test__tasks": 2}
    config = tiny_config(**small | changes)
    kept = {"w5s1": config.test.episodes["w5s1"]}
    return changed(config, test__episodes=kept)


def test_weights_travel_from_pretraining_into_a_frozen_backbone(tmp_path, caplog):
    pretrained = tmp_path / "pretrained"
    config = with_one_test(learner="classifier", gradient__estimator="plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "run_tests", lambda *args: {})
        train_and_evaluate(config, pretrained)
    weights = str(pretrained / "backbone.safetensors")

    frozen = {"backbone__frozen": True, "backbone__weights": weights}
    config = with_one_test(learner="simple_cnaps", **frozen)
    with caplog.at_level(logging.WARNING, "lite_jax"):
        results = train_and_evaluate(config, tmp_path / "run")
    assert "random initialisation" not in caplog.text
    learned, restored = (
        load_file(x) for x in (weights, tmp_path / "run/backbone.safetensors")
    )
    chex.assert_trees_all_equal(restored, learned)
    assert rows(tmp_path / "run", "train")[-1]["grad_norm"] > 0  # other parameters

    (pretrained / "backbone.safetensors").unlink()  # the checkpoint holds them
    assert evaluate_checkpoint(config, tmp_path / "run") == results


def test_a_frozen_backbone_without_weights_is_warned_of(tmp_path, caplog):
    config = with_one_test(learner="finetuner", backbone__frozen=True, train__steps=0)
    with caplog.at_level(logging.WARNING, "lite_jax"):
        results = train_and_evaluate(config, tmp_path / "run")
    assert "frozen at its random initialisation: set backbone.weights" in caplog.text
    assert evaluate_checkpoint(config, tmp_path / "run") == results


@functools.cache
def first_step(estimator, remat):
    """Return the metrics of the first step by an estimator, on tasks of 5 images."""
    config = tiny_config(
        gradient__estimator=estimator, backbone__remat=remat,
        train__episode__max_support=5,
    )  # fmt: skip
    sources = build_data.make_sources(config)
    learner = build_learner.make_learners(config, sources).trained
    optimizer = build_gradient.make_optimizer(config.optimizer, config.train.steps)
    state = train.init_state(
        optimizer, build_learner.init_params(config, learner, sources)
    )
    step = train.make_train_step(
        build_gradient.make_grad_fn(config, learner), optimizer
    )
    tasks = Feed(config, sources("train")).step(1)
    assert tasks.support.mask.shape == (2, 5)
    _, metrics = step(state, tasks, jax.random.key(0))
    return {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize("estimator", ["lite", "exact", "plain", "subsample"])
def test_baselines_of_the_paper_are_settings(estimator):
    """No LITE, small tasks and rematerialisation, without code paths of their own."""
    found, exact = first_step(estimator, False), first_step("exact", False)
    assert first_step(estimator, True) == pytest.approx(found, rel=1e-4)
    same_value, same_gradient = (
        found[name] == pytest.approx(exact[name], rel=1e-4)
        for name in ("loss", "grad_norm")
    )
    assert same_value == (estimator != "subsample")
    assert same_gradient == (estimator in ("exact", "plain"))
