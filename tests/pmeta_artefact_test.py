"""Exported plans: they adapt as the plan does, alone, and refuse what does not fit."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners import filled, first_blocks
from runs import load_config

from lite_jax import UserError, maml, nn
from lite_jax.pmeta import device
from lite_jax.pmeta.attention import NO_ATTENTION, Attention
from lite_jax.pmeta.export import export_plan
from lite_jax.pmeta.plan import Plan, batch_logits, learned_plan, make_adapt
from lite_jax.pmeta.rule import p_meta
from lite_jax.run.export import export_run
from lite_jax.run.train import train_and_evaluate

pytestmark = pytest.mark.usefixtures("as_users_run_it")
NETWORK = first_blocks(nn.conv4(4, norm_groups=2), 2)
ARCHITECTURE = NETWORK.describe((16, 16, 3), 5)
LOOKS = Attention(0.3, 0.0)


def trained():
    rule = p_meta(0.1, attention=LOOKS)
    learner = maml(NETWORK, way=5, steps=3, rule=rule, learned_head=True)
    image = jax.ShapeDtypeStruct((16, 16, 3), "uint8")
    params = filled(
        jax.eval_shape(lambda key: learner.init(key, image), jax.random.key(0))
    )
    sizes = jax.tree.map(lambda x: jnp.full_like(x, 0.1), params["inner_rule"])
    blocks = sizes["backbone"]
    blocks["blocks.0"] = jax.tree.map(jnp.zeros_like, blocks["blocks.0"])
    blocks["blocks.1"]["conv"] = jnp.array([0.0, 0.2, 0.0])
    params["inner_rule"] = sizes
    return params, learned_plan(ARCHITECTURE, params, attention=LOOKS)


def images(count, seed=0):
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)
    return found, np.arange(count) % 5


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    params, plan = trained()
    path = tmp_path_factory.mktemp("artefact") / "plan.zip"
    return path, params, plan, export_plan(path, plan, params)


@pytest.fixture(scope="module")
def expected(exported):
    """What the plan itself makes of a support and queries: two functions."""
    _, params, plan, _ = exported
    choice, adapt = plan.choices()[0], make_adapt(plan)

    @jax.jit
    def predict(inner, queries):
        modules = params["inner_features"]
        return batch_logits(ARCHITECTURE, choice, {}, inner, modules, queries)

    def logits(support, queries):
        adapted = adapt(params, *(jnp.asarray(x) for x in support))
        inner = {name: adapted[name] for name in ("backbone", "head")}
        return predict(inner, jnp.asarray(queries))

    return logits


def test_an_artefact_adapts_as_the_plan_does_on_supports_of_any_size(
    exported, expected
):
    artefact, queries = device.load(exported[0]), images(3, 1)[0]
    for count in (5, 7):
        inputs, labels = images(count)
        support = inputs, labels.astype(np.int32)
        weights = artefact.adapt(*support)
        found = artefact.predict(queries, weights)
        np.testing.assert_allclose(
            found, expected(support, queries), rtol=1e-3, atol=1e-4
        )
    before = artefact.predict(queries)
    assert np.abs(found - before).max() > 1e-2
    changed = [k for k in weights if weights[k] is not artefact.weights[k]]
    assert changed and not any("blocks.0" in k for k in changed)


def test_steps_of_equal_layers_share_a_program_and_sizes_are_told(exported):
    path, _, _, sizes = exported
    assert set(sizes) == {"predict", "step0", "step1", "weights.npz", "manifest.json"}
    assert all(size > 100 for size in sizes.values())
    assert [x["program"] for x in device.load(path).manifest["steps"]] == [
        "step0", "step1", "step0",
    ]  # fmt: skip
    assert not list(path.parent.glob("*.part"))


def test_batches_are_part_of_an_artefact(exported, tmp_path):
    _, params, plan, _ = exported
    one_step = plan._replace(steps=plan.steps[:1])
    export_plan(tmp_path / "plan.zip", one_step, params, batch_size=5)
    artefact = device.load(tmp_path / "plan.zip")
    inputs, labels = images(10)
    weights = artefact.adapt(inputs, labels)
    adapt = make_adapt(one_step, batch_size=5)
    wanted = adapt(params, jnp.asarray(inputs), jnp.asarray(labels, jnp.int32))
    name = "inner/backbone/blocks.1/norm/group/scale"
    scale = wanted["backbone"]["blocks.1"]["norm"]["group"]["scale"]
    np.testing.assert_allclose(weights[name], scale, rtol=1e-3, atol=1e-5)
    assert np.abs(scale - artefact.weights[name]).max() > 1e-4
    with pytest.raises(ValueError, match="7 are no multiple of batch_size=5"):
        artefact.adapt(*images(7))


def test_the_loader_runs_without_lite_jax(exported, expected, tmp_path):
    path = exported[0]
    shutil.copy(device.__file__, tmp_path / "device.py")
    shutil.copy(path, tmp_path / "plan.zip")
    support = images(5)
    np.savez(tmp_path / "support.npz", inputs=support[0], labels=support[1])
    program = (
        "import sys; sys.modules['lite_jax'] = None; import numpy as np, device\n"
        "artefact = device.load('plan.zip'); given = np.load('support.npz')\n"
        "weights = artefact.adapt(given['inputs'], given['labels'])\n"
        "np.save('found.npy', artefact.predict(given['inputs'], weights))\n"
        "assert not [x for x in sys.modules if x.startswith('lite_jax.')]\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    wanted = expected((support[0], support[1].astype(np.int32)), support[0])
    found = np.load(tmp_path / "found.npy")
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def rewritten(path, folder, **changes):
    """The artefact with another manifest."""
    other = folder / "other.zip"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == device.MANIFEST:
                data = json.dumps(json.loads(data) | changes).encode()
            new.writestr(name, data)
    return other


def test_what_does_not_fit_is_named(exported, tmp_path):
    path = exported[0]
    other = rewritten(path, tmp_path, format=2, lite_jax="9.9")
    with pytest.raises(ValueError, match=r"format 2, made by lite_jax 9\.9.*export it"):
        device.load(other)
    (tmp_path / "none.zip").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="not an exported plan"):
        device.load(tmp_path / "none.zip")
    artefact = device.load(path)
    inputs, labels = images(5)
    for given, message in (
        ((inputs.astype(np.float32), labels), r"inputs: float32 .* expected uint8"),
        ((inputs[:, :8], labels), r"expected uint8 of shape \(n, 16, 16, 3\)"),
        ((inputs, labels[:4]), r"labels: shape \(4,\)"),
        ((inputs[:0], labels[:0]), "at least one"),
        ((inputs, labels + 1), "labels: 1 to 5, expected 0 to 4"),
    ):
        with pytest.raises(ValueError, match=message):
            artefact.adapt(*given)


def test_a_head_that_is_not_learned_starts_at_zero(tmp_path):
    params, plan = trained()
    del params["head"]
    short = plan._replace(steps=({"head": 0.5},), attention=NO_ATTENTION)
    export_plan(tmp_path / "plan.zip", short, params)
    artefact = device.load(tmp_path / "plan.zip")
    inputs, labels = images(5)
    assert not np.asarray(artefact.predict(inputs)).any()
    found = artefact.predict(inputs, artefact.adapt(inputs, labels))
    assert np.asarray(found).any()


def test_a_plan_without_a_step_is_not_exported(tmp_path):
    params, _ = trained()
    with pytest.raises(UserError, match="every step size is 0"):
        export_plan(tmp_path / "a.zip", Plan(ARCHITECTURE, ({},)), params)
    assert not list(Path(tmp_path).iterdir())


def test_a_trained_run_is_exported_with_what_its_steps_cost(tmp_path):
    config = load_config(
        "pmeta", "synthetic,smoke,steps_only,lean,shot1", data__image_size=16,
        backbone__width=8, inner__steps=2, train__steps=1, valid__tasks=0,
        test__tasks=1,
    )  # fmt: skip
    train_and_evaluate(config, tmp_path)
    table = export_run(config, tmp_path)
    artefact = device.load(tmp_path / "plan.zip")
    steps = artefact.manifest["steps"]
    for k, step in enumerate(steps):
        assert f"step {k + 1}" in table and f"{len(step['sizes'])} of 9" in table
    assert artefact.predict(np.zeros((2, 16, 16, 3), np.uint8)).shape == (2, 5)
