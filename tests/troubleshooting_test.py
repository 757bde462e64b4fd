"""Every error of the README's table is produced, and reads as the table says."""

import re
import socket
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners import filled
from runs import load_config, tiny_config

import lite_jax
from lite_jax import batched, check_additive, cnaps, exact_sum, nn
from lite_jax.apps.evaluations.jobs import Job, run_jobs
from lite_jax.classify import load_classifier
from lite_jax.classify.demo.server import serve
from lite_jax.data.images import ImageSpec
from lite_jax.data.readers.arrays import array_source
from lite_jax.data.readers.prepared import find_prepared
from lite_jax.data.readers.tfrecord import RecordFile
from lite_jax.learners import protonets
from lite_jax.run import build_gradient, memory_budget, parallel, workdir
from lite_jax.run.train import train_and_evaluate
from lite_jax.types import Examples

pytestmark = pytest.mark.usefixtures("as_users_run_it")
README = (Path(__file__).parents[1] / "README.md").read_text()
TABLE = README.split("[start:troubleshooting]")[1].split("[end:troubleshooting]")[0]
MESSAGES = re.findall(r"^\| `([^`]+)`", TABLE, re.MULTILINE)
SPEC = jax.ShapeDtypeStruct((16, 16, 3), jnp.uint8)


def second_derivative(tmp_path):
    def loss(w):
        return exact_sum(2)(batched(lambda w, x: w * x), w, jnp.ones(6), None) ** 2

    jax.grad(jax.grad(loss))(1.0)


def other_weights(tmp_path):
    def shapes(network):
        return jax.eval_shape(lambda key: network.init(key, SPEC), jax.random.key(0))

    path = tmp_path / "a.safetensors"
    nn.save_weights(path, filled(shapes(nn.conv4(8, norm_groups=2))))
    shapes(nn.pretrained(nn.conv4(16, norm_groups=2), str(path)))


def label_outside(tmp_path):
    learner = protonets(nn.pixels(), way=3)
    images = jnp.zeros((2, 4, 4, 3), jnp.uint8)
    support = Examples(images, jnp.array([0, 7]), jnp.ones(2, bool))
    learner.adapt({"backbone": {}}, support, None, exact_sum())


def memory(tmp_path):
    def build(chunk_size):
        return jax.jit(lambda x: x @ x.T).lower(jnp.ones((chunk_size, 9))).compile()

    memory_budget.largest_chunk(build, 8, 1e-9)


def out_of_memory(tmp_path):
    with memory_budget.out_of_memory_explained(tiny_config()):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: of 80 GB")


def broken_record(tmp_path):
    (tmp_path / "a.tfrecords").write_bytes(b"no record at all")
    RecordFile(tmp_path / "a.tfrecords", index_folder=tmp_path)


def pickle(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04N.")
    array_source(tmp_path / "a.pkl", "train", ImageSpec(8))


def other_results(tmp_path):
    for learner in ("protonets", "cnaps"):
        settings = {"dataset": "birds", "learner": learner}
        run_jobs([Job("birds", settings, lambda: {})], tmp_path / "a.jsonl")


def occupied_twice(tmp_path):
    with workdir.occupied(tmp_path / "a", tiny_config()):
        with workdir.occupied(tmp_path / "a", tiny_config()):
            pass


def other_config(tmp_path):
    workdir.claim(tmp_path / "a", tiny_config())
    workdir.claim(tmp_path / "a", tiny_config(seed=1))


def a_file_in_the_way(tmp_path):
    (tmp_path / "a").write_text("")
    workdir.claim(tmp_path / "a/b", tiny_config())


@pytest.fixture(scope="module")
def untrained(as_users_run_it, tmp_path_factory):
    """A run of no steps."""
    folder = tmp_path_factory.mktemp("untrained") / "run"
    config = tiny_config(
        train__steps=0, valid__tasks=0, test__tasks=1, backbone__name="pixels"
    )
    train_and_evaluate(config, folder)
    return folder


def no_sub_folders(tmp_path, run):
    lite_jax.load(run).adapt(tmp_path)


def port_in_use(tmp_path, run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        serve(run, taken.getsockname()[1])


def unreadable_class(tmp_path, run):
    grey = np.zeros((8, 8), np.uint8)
    lite_jax.load(run).adapt({"a": [grey], "b": [b"no image"]})


NEED_A_RUN = no_sub_folders, port_in_use, unreadable_class


def too_much_backward(tmp_path):
    config = load_config("protonets", "synthetic", gradient__num_backprop=10_000)
    build_gradient.make_set_sum(config)


def mixed(weights, images):
    return images - images.mean(0, keepdims=True)


def nothing_to_learn(tmp_path):
    train_and_evaluate(tiny_config(backbone__frozen=True), tmp_path / "a")


def not_finite(tmp_path):
    wild = tiny_config(
        optimizer__learning_rate=1e38, optimizer__schedule="constant",
        train__valid_every=6,
    )  # fmt: skip
    train_and_evaluate(wild, tmp_path / "a")


PRODUCED = {
    "takes no 'set_sum' keyword": lambda _: lite_jax.lite_grad(
        lambda w: w, num_backprop=1
    )(1.0),
    "not additive": lambda _: check_additive(
        batched(mixed), (), jax.random.normal(jax.random.key(0), (6, 3))
    ),
    "second derivatives": second_derivative,
    "belongs to another config": other_config,
    "does not fit the backbone": other_weights,
    "nothing to learn": nothing_to_learn,
    "no FiLM places": lambda _: cnaps(
        nn.pixels(), way=5, embedding=nn.set_encoder(8), embedding_size=8
    ),
    "labels: class": label_outside,
    "num_backprop=": too_much_backward,
    "out of memory": out_of_memory,
    "memory_budget_gb": memory,
    "does not divide train": lambda path: train_and_evaluate(
        tiny_config(devices__tasks=4), path
    ),
    "× devices.examples": lambda _: parallel.make_mesh(30, 30),
    "different configs": lambda _: workdir.check_hosts_agree([{"a": 1}, {"a": 2}]),
    "prepared by tfds": lambda path: find_prepared(path, "mnist"),
    "is broken": broken_record,
    "is a pickle": pickle,
    "has results of": other_results,
    "not finite": not_finite,
    "another run is at work": occupied_twice,
    "holds no config.json": lambda path: lite_jax.load(path),
    "holds no images in": no_sub_folders,
    "images can be read": unreadable_class,
    "cannot be loaded": lambda path: load_classifier(path / "a.zip"),
    "cannot be used": port_in_use,
    "cannot be written": a_file_in_the_way,
}


@pytest.mark.parametrize("message", MESSAGES)
def test_the_error_is_produced(message, tmp_path, request):
    (produce,) = (make for key, make in PRODUCED.items() if key in message)
    pattern = ".*".join(re.escape(part) for part in message.split("…"))
    given = [tmp_path]
    if produce in NEED_A_RUN:
        given.append(request.getfixturevalue("untrained"))
    with pytest.raises((ValueError, TypeError), match=f"(?s){pattern}"):
        produce(*given)


def test_no_error_is_produced_that_the_table_lacks():
    assert len(MESSAGES) == len(PRODUCED)
