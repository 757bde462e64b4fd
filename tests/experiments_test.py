"""Every experiment runs in its smoke size and leaves rows with their origin."""

import functools
import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from learners import first_blocks
from runs import load_config, one_block, use_one_block

from benchmarks.macs import count_macs
from lite_jax import Network, nn
from lite_jax.data import registry
from lite_jax.run import build_learner, evaluate, train
from tests.stress.soak import check_flat

ROOT = Path(__file__).parents[1]
MODULES = {
    path.stem: ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("benchmarks", "experiments", "tests/stress")
    for path in sorted(ROOT.glob(f"{folder}/*.py"))
    if "__main__" in path.read_text() and path.stem != "report"  # which reads rows
}
NAMES = sorted(MODULES)
AS_COMMANDS = {"cost", "fuzz", "fuzz_guided", "kills", "soak"}
SLOW = {"fuzz", "fuzz_guided", "kills", "soak"}


def rows_of(name, out, printed):
    """The rows that an experiment left, which are those that it printed."""
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == len(printed.splitlines()) > 1
    assert all(row["experiment"] == name and row["device"] for row in rows)
    assert all(row["versions"]["jax"] for row in rows)
    return rows


def marked(names):
    return [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in names
    ]


def two_blocks(width=8):
    """Conv-4's first two blocks and a mean over positions."""
    network = first_blocks(CONV4(width), 2)

    def apply(params, images):
        features = network.apply(params, images)
        return features.reshape(len(features), -1, width).mean(1)

    return network._replace(apply=apply, describe=None)


def bag_of_words(vocabulary, *, width, depth):
    """The mean of the words' vectors, in place of a transformer."""
    del depth

    def init(key, spec):
        del spec
        return {"words": jax.random.normal(key, (vocabulary, width))}

    return Network(init, lambda params, tokens: params["words"][tokens].mean(1))


CONV4 = nn.conv4
NETWORKS = {"variance": two_blocks}  # it tells the last block from those below


@pytest.fixture(scope="module")
def shared(as_users_run_it):
    """What runs have in common: digits of a size, and the scoring of raw pixels."""
    digits = functools.cache(registry.digits)
    pixels = build_learner.make_baseline(load_config())
    scorer = functools.cache(evaluate.make_scorer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "digits", digits)
        patch.setattr(build_learner, "make_baseline", lambda config: pixels)
        patch.setattr(train, "make_scorer", scorer)
        patch.setattr(evaluate, "make_scorer", scorer)
        yield


@pytest.fixture
def small_networks(name, monkeypatch):
    """Small networks in place of an experiment's: a quarter of the code, or less."""
    use_one_block(monkeypatch)
    monkeypatch.setattr(nn, "conv4", NETWORKS.get(name, one_block))
    monkeypatch.setattr(nn, "set_encoder", functools.partial(one_block, film=False))
    monkeypatch.setattr(nn, "text_encoder", bag_of_words)
    experiment = importlib.import_module(MODULES[name])
    for network in getattr(experiment, "BACKBONES", ()):
        monkeypatch.setitem(experiment.BACKBONES, network, one_block)


@pytest.mark.usefixtures("shared", "small_networks")
@pytest.mark.parametrize("name", marked(n for n in NAMES if n not in AS_COMMANDS))
def test_smoke_run_leaves_rows(name, tmp_path, capsys):
    settings = jax.config.values.copy()
    out = tmp_path / "rows.jsonl"
    experiment = importlib.import_module(MODULES[name])
    experiment.main(["--smoke", f"--out={out}"])
    rows_of(name, out, capsys.readouterr().out)
    assert jax.config.values == settings


@pytest.mark.parametrize("name", marked(sorted(AS_COMMANDS)))
def test_smoke_run_as_a_command_leaves_rows(name, tmp_path):
    if name == "fuzz_guided":
        pytest.importorskip("atheris", reason="atheris is for Linux")
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", MODULES[name], "--smoke", f"--out={out}"]
    found = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert found.returncode == 0, found.stderr
    rows_of(name, out, found.stdout)


@pytest.mark.parametrize(
    ("name", "growth"),
    [("programs", 1), ("resident_mb", 101), ("open_files", 11), ("threads", 11)],
)
def test_a_run_that_grows_is_noticed(name, growth):
    flat = {"programs": 70, "resident_mb": 500, "open_files": 10, "threads": 9}
    rows = [{**flat, "programs": 60}, *[flat] * 19]
    check_flat(rows)
    with pytest.raises(AssertionError, match=f"{name} grew"):
        check_flat([*rows, {**flat, name: flat[name] + growth}])


def test_committed_rows_are_json_of_known_experiments():
    files = list(ROOT.glob("experiments/results/*.jsonl"))
    assert files
    for path in files:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            assert row["experiment"] in NAMES and row["versions"]["jax"]


@pytest.mark.parametrize(
    "make, gmacs",
    [(nn.efficientnet_b0, 0.385), (nn.set_encoder, 0.701), (nn.resnet18, 1.814)],
)
def test_macs_of_networks_at_224_pixels_are_the_published_ones(make, gmacs):
    net, spec = make(), jax.ShapeDtypeStruct((224, 224, 3), jnp.uint8)
    params = jax.eval_shape(lambda key: net.init(key, spec), jax.random.key(0))
    one = jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype)
    with jax.numpy_dtype_promotion("standard"):
        assert count_macs(net.apply, params, one) / 1e9 == pytest.approx(
            gmacs, abs=5e-4
        )


def test_macs_of_a_scan_count_as_often_as_it_runs_and_loops_are_refused():
    matrix = jnp.ones((3, 4))

    def scanned(x):
        def step(carry, _):
            return carry + (matrix @ x).sum(), None

        return jax.lax.scan(step, 0.0, length=5)[0]

    assert count_macs(scanned, jnp.ones((4, 2))) == 5 * 3 * 4 * 2
    with pytest.raises(ValueError, match="trip count"):
        count_macs(lambda n: jax.lax.fori_loop(0, n, lambda i, x: x * 2.0, 1.0), 3)
