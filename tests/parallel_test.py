"""Many devices give what one gives: 8 in this process, and two processes."""

import functools
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from runs import load_config, tiny_config

from lite_jax import Pooled, UserError, episode_grad, exact_sum, lite_sum
from lite_jax.lite.sampling import SAMPLERS
from lite_jax.run import parallel
from lite_jax.run.train import init_state, make_train_step, train_and_evaluate
from lite_jax.run.workdir import check_hosts_agree
from tests import toys

ROOT = Path(__file__).parents[1]
CASES = [(shape, "uniform") for shape in [(8, 1), (1, 8), (1, 3)]]
CASES += [((2, 4), sampling) for sampling in ("all", *SAMPLERS)]
CASES += [((1, 4), "at once")]  # a set without a chunk size


def stacked_tasks(count):
    tasks = [
        toys.task(support_padding=1, query_padding=2, seed=i) for i in range(count)
    ]
    return jax.tree.map(lambda *x: np.stack(x), *tasks)


made_learner = functools.cache(toys.make_learner)


def operator_of(axis, sampling):
    """Sampling by its name, "all" for an exact sum in chunks, "at once" without."""
    if sampling == "at once":
        return exact_sum(axis_name=axis)
    if sampling == "all":
        return exact_sum(2, axis_name=axis)
    return lite_sum(4, 2, sampling, axis_name=axis)


def mean_gradient(name, sampling, shape, count):
    """The mean gradient of tasks on a mesh, or without one."""
    mesh = None if shape is None else parallel.make_mesh(*shape)
    axis = None if shape is None else parallel.EXAMPLES
    learner, params = made_learner(name)
    grad_fn = episode_grad(
        learner,
        operator_of(axis, sampling),
        query_chunk_size=1 if mesh else None,
        axis_name=axis,
    )
    mean = jax.jit(parallel.mean_over_tasks(grad_fn, mesh))
    return mean(params, stacked_tasks(count), jax.random.key(3))


on_one_device = functools.cache(functools.partial(mean_gradient, shape=None))


@pytest.mark.parametrize(("shape", "sampling"), CASES)
def test_devices_share_a_step_and_its_draws(shape, sampling):
    one = on_one_device("protonets", sampling, count=8)
    many = mean_gradient("protonets", sampling, shape, count=8)
    chex.assert_trees_all_close(many, one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize("sampling", ["sensitivity", "stratified_sensitivity"])
def test_idle_devices_change_no_draw(sampling, chunk_size):
    """Five examples on eight devices: three have none, and count no features."""
    squares = Pooled(lambda a, e: a * e["x"], lambda f, e, w: w @ f**2)
    x = jnp.array([3.0, 1.0, -1.0, 2.0, 0.5])
    examples = {"x": x, "labels": jnp.array([0, 0, 1, 1, 1])}

    def gradient(axis):
        operator = lite_sum(2, chunk_size, sampling, axis_name=axis)

        def loss(a, key):
            rows = operator.map(lambda a, e: jnp.sin(a * e["x"]), a, examples, key[1])
            return jnp.sin(operator(squares, a, examples, key[0])) + (rows**2).sum()

        return jax.grad(loss)

    shared = jax.shard_map(
        gradient(parallel.EXAMPLES), mesh=parallel.make_mesh(1, 8),
        in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False,
    )  # fmt: skip
    one, many = jax.jit(gradient(None)), jax.jit(shared)
    for seed in range(4):
        key = jax.random.split(jax.random.PRNGKey(seed))
        np.testing.assert_allclose(many(0.7, key), one(0.7, key), rtol=1e-9)


@pytest.mark.parametrize("name", toys.LEARNERS)
def test_every_learner_can_be_shared_out(name):
    one = on_one_device(name, "uniform", count=2)
    many = mean_gradient(name, "uniform", (2, 2), count=2)
    chex.assert_trees_all_close(many, one, rtol=1e-9, atol=1e-12)


def compiled_step(mesh, num_support, num_tasks=1):
    """The text of a step's program."""
    learner, params = made_learner("protonets")
    axis = parallel.EXAMPLES if mesh is not None else None
    operator = exact_sum(1, axis_name=axis)
    grad_fn = episode_grad(learner, operator, query_chunk_size=1, axis_name=axis)
    optimizer = optax.sgd(0.1)
    state = init_state(optimizer, params)
    task = jax.device_get(toys.task(num_support))
    tasks = jax.tree.map(lambda x: np.stack([x] * num_tasks), task)
    tasks = parallel.place_tasks(mesh, tasks, num_tasks)
    state, key = parallel.replicate(mesh, state), parallel.replicated_key(mesh, 0)
    step = make_train_step(grad_fn, optimizer, mesh)
    return step.lower(state, tasks, key).compile().as_text()


def collectives_in_loops(text):
    """For each loop of a program, whether its body leads to a collective."""
    parts = {part.split()[0].lstrip("%"): part for part in re.split(r"\n(?=%)", text)}

    def meets(name):
        found = set(re.findall(r"%([\w.-]+)", parts[name])) & parts.keys() - {name}
        return "all-reduce(" in parts[name] or any(map(meets, found))

    return [meets(name) for name in re.findall(r"body=%([\w.-]+)", text)]


def test_loops_hold_no_collective():
    """Devices meet after their loops, a fixed number of times, whatever the set."""
    counts = []
    for num_support in (16, 64):
        text = compiled_step(parallel.make_mesh(1, 8), num_support)
        counts.append(text.count("all-reduce("))
        loops = collectives_in_loops(text)
        assert loops and not any(loops)
    assert counts[0] == counts[1] > 0
    # the loop over tasks, which all devices pass together
    assert sum(collectives_in_loops(compiled_step(parallel.make_mesh(1, 8), 8, 2))) == 1


def test_a_step_on_a_mesh_learns_as_on_one_device():
    learner, params = made_learner("protonets")
    optimizer = optax.sgd(0.1, momentum=0.9)
    tasks = jax.device_get(stacked_tasks(4))
    ends = []
    for mesh in (None, parallel.make_mesh(4, 2)):
        axis = parallel.EXAMPLES if mesh is not None else None
        grad_fn = episode_grad(learner, lite_sum(3, 1, axis_name=axis), axis_name=axis)
        step = make_train_step(grad_fn, optimizer, mesh)
        state = init_state(optimizer, jax.tree.map(jnp.copy, params))
        state, key = parallel.replicate(mesh, state), parallel.replicated_key(mesh, 1)
        for _ in range(3):
            state, metrics = step(state, parallel.place_tasks(mesh, tasks, 4), key)
        ends.append((parallel.on_this_host(mesh, state), jax.device_get(metrics)))
    chex.assert_trees_all_close(*jax.device_get(ends), rtol=1e-9, atol=1e-12)


# --------------------------------------------------------------------------- runs


SHORT = {"train__steps": 2, "valid__tasks": 0, "test__tasks": 1}


def loss_curve(workdir):
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    return [r["loss"] for r in map(json.loads, rows) if r["split"] == "train"]


@pytest.mark.usefixtures("as_users_run_it")
def test_a_run_on_eight_devices_is_that_of_one(tmp_path):
    curves = []
    for tasks, examples in ((1, 1), (2, 4)):
        config = tiny_config(devices__tasks=tasks, devices__examples=examples, **SHORT)
        train_and_evaluate(config, tmp_path / str(tasks))
        curves.append(loss_curve(tmp_path / str(tasks)))
    assert len(curves[0]) == 2
    np.testing.assert_allclose(*curves, rtol=1e-3)


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
import jax
jax.config.update("jax_num_cpu_devices", 2)
from runs import tiny_config
from lite_jax import UserError
from lite_jax.run import parallel, train
hosts, workdir, seed, steps = sys.argv[1:]
parallel.connect(hosts)
config = tiny_config(
    devices__tasks=2,
    devices__examples=2,
    seed=int(seed),
    optimizer__schedule="constant",
    train__steps=3,
    train__valid_every=1,
    valid__tasks=2,
    test__tasks=2,
)
stop = int(steps)
if stop:
    make = train.make_train_step
    def stopping(*args):
        step, taken = make(*args), [0]
        def inner(*args):
            taken[0] += 1
            if taken[0] > stop:
                raise KeyboardInterrupt
            return step(*args)
        return inner
    train.make_train_step = stopping
try:
    results = train.train_and_evaluate(config, Path(workdir))
    print("result", results["w5s1"]["protonets"].mean)
except KeyboardInterrupt:
    print("stopped")
except UserError as error:
    print("error", error)
"""


def two_processes(workdirs, seeds=(0, 0), stop_after=0):
    """Run two hosts of two devices each, and return what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [
                sys.executable, "-c", RUN, f"127.0.0.1:{port},2,{index}",
                str(workdir), str(seed), str(stop_after),
            ],
            cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for index, (workdir, seed) in enumerate(zip(workdirs, seeds, strict=True))
    ]  # fmt: skip
    outputs = []
    try:
        for process in processes:
            out, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors
            outputs.append(out)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return outputs


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_run_it")
def test_two_hosts_train_as_one_and_resume(tmp_path):
    config = tiny_config(
        devices__tasks=2, devices__examples=2, optimizer__schedule="constant",
        train__steps=3, train__valid_every=1, valid__tasks=2, test__tasks=2,
    )  # fmt: skip
    results = train_and_evaluate(config, tmp_path / "one")
    workdirs = tmp_path / "both", tmp_path / "unused"
    stopped = two_processes(workdirs, stop_after=2)
    assert all("stopped" in out for out in stopped)
    assert len(loss_curve(tmp_path / "both")) == 2
    first, second = two_processes(workdirs)
    first, second = (out.splitlines()[-1] for out in (first, second))
    assert first == second, "hosts disagree"
    assert float(first.split()[-1]) == pytest.approx(results["w5s1"]["protonets"].mean)
    np.testing.assert_allclose(
        loss_curve(tmp_path / "both"), loss_curve(tmp_path / "one"), rtol=1e-3
    )
    assert not workdirs[1].exists(), "the second host wrote to its workdir"


@pytest.mark.slow
def test_hosts_of_different_configs_all_stop(tmp_path):
    for out in two_processes((tmp_path / "a", tmp_path / "b"), seeds=(0, 7)):
        assert "seed is 0 on host 0 and 7 on host 1" in out
    assert not (tmp_path / "a").exists()


# ---------------------------------------------------------------------- bad input


def test_configs_are_compared_setting_by_setting():
    check_hosts_agree([{"a": {"b": 1}}, {"a": {"b": 1}}])
    with pytest.raises(UserError, match=r"a\.b is 1 on host 0 and 2 on host 2"):
        check_hosts_agree([{"a": {"b": 1}}, {"a": {"b": 1}}, {"a": {"b": 2}}])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 4), r"devices\.tasks=3 × devices\.examples=4 is 12 devices.* have 8"),
        ((0, 1), r"devices\.tasks=0: expected 1 or more"),
        ((1, -2), r"devices\.examples=-2: expected 1 or more"),
    ],
)
def test_devices_that_are_not_there(shape, message):
    with pytest.raises(UserError, match=message):
        parallel.make_mesh(*shape)


def test_devices_that_do_not_divide_the_tasks(tmp_path):
    config = load_config(devices__tasks=2, train__tasks_per_step=3)
    with pytest.raises(
        UserError, match=r"devices\.tasks=2 does not divide train\.tasks_per_step=3"
    ):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "where", ["", "10.0.0.1:1234", "10.0.0.1,2,0", "10.0.0.1:1,2,2", "10.0.0.1:1,2,-1"]
)
def test_hosts_flag_says_what_it_expects(where):
    with pytest.raises(UserError, match="expected auto, or ADDRESS:PORT,COUNT,INDEX"):
        parallel.connect(where)
