"""Weights of training examples: the problem, the sets, the scores, the two jobs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from estimates import estimate, products_of
from learners import filled, flat, relative_error
from runs import after_step, interrupt, load_config, terminate
from scipy import special

from lite_jax import UserError, exact_sum, hypergrad, nn
from lite_jax.apps.reweight import loop, setup, training
from lite_jax.apps.reweight import run as reweight_run
from lite_jax.apps.reweight.pruning import SCORES, kept_rows
from lite_jax.apps.reweight.run import run_reweighting
from lite_jax.apps.reweight.sets import LabelledSet, make_sets
from lite_jax.apps.reweight.text import generated_texts, read_tsv
from lite_jax.apps.reweight.training import reweighting_problem
from lite_jax.apps.reweight.weightings import meta_weight_net, per_example_weighting
from lite_jax.files import read_rows
from lite_jax.run.preemption import Preempted

# ------------------------------------------------------------------- the problem


def linear_case(weighting, count=12):
    rng = np.random.default_rng(0)
    inputs, clean, params = (
        jnp.array(rng.normal(size=size)) for size in ((count, 3), (5, 3), (3, 4))
    )
    labels = jnp.array(rng.integers(0, 4, count), jnp.int32)
    init = functools.partial(weighting.init, num_train=count)
    meta = filled(jax.eval_shape(lambda key: init(key), jax.random.key(0)), 1, float, 1)
    batches = (inputs, labels, jnp.arange(count, dtype=jnp.int32)), (clean, labels[:5])
    problem = reweighting_problem(lambda params, x: x @ params, weighting)
    return problem, params, meta, batches


WEIGHTINGS = {
    "per_example": per_example_weighting(),
    "meta_weight_net": meta_weight_net(5),
}


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_mixed_products_by_one_forward_pass_are_the_general_ones(name):
    """Also through Meta-Weight-Net, whose losses are constants to it."""
    problem, params, meta, batches = linear_case(WEIGHTINGS[name])
    vector = jnp.cos(jnp.arange(12.0)).reshape(3, 4)
    general = problem._replace(outputs=None, combine=None)

    @jax.jit
    def mixed(params, meta, batches, vector):
        return [
            products_of(p, params, meta, batches).mixed(vector)
            for p in (problem, general)
        ]

    fast, slow = map(jax.tree.leaves, mixed(params, meta, batches, vector))
    for x, y in zip(fast, slow, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)
    assert max(np.abs(x).max() for x in fast) > 1e-4


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_step_of_the_classifier_takes_weights_as_constants(name):
    """Or it would lower a weight by raising a loss."""
    weighting = WEIGHTINGS[name]
    problem, params, meta, (batch, _) = linear_case(weighting)

    @jax.jit
    def gradients(params, meta, batch):
        losses = problem.outputs(params, batch)
        weights = weighting.weights(meta, losses, batch[2])

        def constant(params):
            return weights @ problem.outputs(params, batch) / weights.sum()

        inner = functools.partial(problem.inner, set_sum=None)
        return jax.grad(inner)(params, meta, batch), jax.grad(constant)(params)

    found, expected = gradients(params, meta, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_the_identity_is_the_slope_of_one_small_step(name):
    """d/dλ of the clean loss after θ − ε ∂g/∂θ, over ε, in the limit."""
    problem, params, meta, batches = linear_case(WEIGHTINGS[name])

    def after_a_step(meta, params, batches, size):
        grads = jax.grad(problem.inner)(params, meta, batches[0], set_sum=None)
        moved = params - size * grads
        return problem.outer(moved, meta, batches[1], set_sum=None)

    size = 1e-6
    unrolled = jax.jit(jax.grad(after_a_step))(meta, params, batches, size)
    identity = hypergrad.identity(set_sum=exact_sum())
    found = estimate(identity, problem, params, meta, batches, ())
    assert relative_error(found.grads, flat(unrolled) / size) < 1e-4


def test_the_scale_of_the_weights_does_not_matter():
    problem, params, meta, batches = linear_case(per_example_weighting())
    inner = jax.jit(functools.partial(problem.inner, set_sum=None))
    small = np.full(meta.shape, -3.0)  # so that twice the weight is below 1
    grown = special.logit(2 * special.expit(small))
    losses = [inner(params, x, batches[0]) for x in (small, grown)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)
    assert abs(inner(params, small * np.arange(12.0), batches[0]) - losses[0]) > 1e-3


def test_meta_weight_net_starts_with_equal_weights():
    weighting = meta_weight_net(7)
    meta = weighting.init(jax.random.key(0), 3)
    weights = weighting.weights(meta, jnp.array([0.1, 1.0, 9.0]), jnp.arange(3))
    np.testing.assert_allclose(weights, 0.5)


# ---------------------------------------------------------------------- the sets


def test_noise_moves_the_share_of_training_labels_and_no_others():
    clean = make_sets(load_config("sama_prune"))
    noisy = make_sets(load_config("sama_prune", reweight__noise=0.3))
    changed = clean.train.labels != noisy.train.labels
    np.testing.assert_array_equal(changed, noisy.wrong)
    assert abs(changed.mean() - 0.3) < 0.05
    assert not clean.wrong.any()
    np.testing.assert_array_equal(clean.train.inputs, noisy.train.inputs)
    for name in ("meta", "test"):
        for x, y in zip(getattr(clean, name), getattr(noisy, name), strict=True):
            np.testing.assert_array_equal(x, y)
    sizes = [len(x.labels) for x in clean[:3]]
    assert sizes == [1000, 50, 1797 - 1050]
    everything = np.concatenate([x.inputs for x in clean[:3]])
    assert len(np.unique(everything, axis=0)) == 1797
    other = make_sets(load_config("sama_prune", seed=1))
    assert (other.train.labels != clean.train.labels).any()


def test_generated_texts_differ_by_class_in_words_and_order():
    texts = generated_texts(4000, 2, 0, vocabulary=50, length=12)
    again = generated_texts(4000, 2, 0, vocabulary=50, length=12)
    np.testing.assert_array_equal(texts.tokens, again.tokens)
    lengths = (texts.tokens > 0).sum(1)
    assert lengths.min() == 4 and lengths.max() == 12
    real = np.arange(12) < lengths[:, None]
    assert (texts.tokens[real] >= 2).all() and (texts.tokens[~real] == 0).all()
    assert texts.tokens.max() < 52

    def pairs(label):
        rows = texts.tokens[texts.labels == label]
        first, second = rows[:, :-1].ravel(), rows[:, 1:].ravel()
        table = np.zeros((52, 52))
        np.add.at(table, (first, second), 1.0)
        table = table[2:, 2:]
        return table / np.maximum(table.sum(1, keepdims=True), 1)

    first, second = pairs(0), pairs(1)
    # 0.3 of the successors are fixed by the class, whatever the words' frequencies.
    assert np.median(first.max(1)) > 0.25
    assert (first.argmax(1) == second.argmax(1)).mean() < 0.5


def write_tsv(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.tsv").write_text(text, encoding="utf-8")
    return folder


def test_tsv_files_are_read(tmp_path):
    root = write_tsv(
        tmp_path,
        train="spam\tBuy now, buy!\nham\tsee you at nöon\nham\tbuy milk\n",
        meta="ham\tmilk and honey\n",
        test="spam\t\n",
    )
    texts, names = read_tsv(root, vocabulary=3, length=4)
    assert names == ["ham", "spam"]
    # "buy" is the most frequent word; then by the alphabet: at, milk.
    assert texts["train"].tokens.tolist() == [[2, 1, 2, 0], [1, 1, 3, 1], [2, 4, 0, 0]]
    assert texts["train"].labels.tolist() == [1, 0, 0]
    assert texts["meta"].tokens.tolist() == [[4, 1, 1, 0]]
    assert texts["test"].tokens.tolist() == [[0, 0, 0, 0]]


GOOD = "a\tx\nb\ty\n"


@pytest.mark.parametrize(
    "files,message",
    [
        ({"train": GOOD, "meta": GOOD}, "test.tsv cannot be read"),
        ({"train": "a\tx\nno tab\n", "meta": GOOD, "test": GOOD}, "train.tsv, line 2"),
        ({"train": GOOD, "meta": "c\tx\n", "test": GOOD}, "label 'c' is none"),
        ({"train": "a\tx\n", "meta": GOOD, "test": GOOD}, "all labels are 'a'"),
        ({"train": "", "meta": GOOD, "test": GOOD}, "is empty"),
    ],
)
def test_tsv_files_that_cannot_serve_are_named(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        read_tsv(write_tsv(tmp_path, **files), vocabulary=9, length=4)


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    write_tsv(tmp_path, train=GOOD, meta=GOOD)
    (tmp_path / "test.tsv").write_bytes(b"a\t\xff\n")
    with pytest.raises(UserError, match=r"test\.tsv cannot be read"):
        read_tsv(tmp_path, vocabulary=9, length=4)


# -------------------------------------------------------------------- the scores


def test_scores_are_those_of_the_closed_form():
    """For a linear classifier with a bias the gradient is an outer product."""
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(7, 3)), rng.integers(0, 4, 7).astype(np.int32)
    params = {"kernel": jnp.array(rng.normal(size=(3, 4))), "bias": jnp.ones(4)}
    train = LabelledSet(jnp.array(inputs), jnp.array(labels))

    def logits(params, x):
        return x @ params["kernel"] + params["bias"][None]

    @jax.jit
    def scored(params, train):
        return {name: score(logits, params, train) for name, score in SCORES.items()}

    scores = scored(params, train)
    shares = special.softmax(inputs @ np.asarray(params["kernel"]) + 1, 1)
    errors = np.linalg.norm(shares - np.eye(4)[labels], axis=1)
    np.testing.assert_allclose(scores["EL2N"], errors, rtol=1e-9)
    lengths = np.sqrt((inputs**2).sum(1) + 1)
    np.testing.assert_allclose(scores["GraNd"], errors * lengths, rtol=1e-9)
    own = -np.log(shares[np.arange(7), labels])
    np.testing.assert_allclose(scores["loss"], own, rtol=1e-9)


def test_kept_rows_are_the_highest_or_lowest():
    scores = np.array([3.0, 1.0, 2.0, 2.0, 5.0])
    assert kept_rows(scores, 0.4, highest=True).tolist() == [0, 4]
    assert kept_rows(scores, 0.4, highest=False).tolist() == [1, 2]
    assert kept_rows(scores, 0.01, highest=True).tolist() == [4]


def test_padding_of_a_text_does_not_count(as_users_run_it):
    network = nn.text_encoder(20, width=4, depth=1, heads=2)
    texts = jax.ShapeDtypeStruct((6,), jnp.int32)
    params = filled(
        jax.eval_shape(lambda key: network.init(key, texts), jax.random.key(0))
    )
    texts = jnp.array([[5, 7, 3, 0, 0, 0], [5, 7, 3, 9, 0, 0], [0] * 6])
    short = params | {"positions": params["positions"][:, :3]}
    apply = jax.jit(network.apply)
    alone, found = apply(short, texts[:1, :3]), apply(params, texts)
    np.testing.assert_allclose(found[:1], alone, rtol=1e-4, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert np.isfinite(found[2]).all()


# ---------------------------------------------------------------------- the jobs


@pytest.fixture(scope="module")
def one_program():
    """Runs that differ in their examples and steps alone share what is compiled."""
    make_setup, setups = setup.make_setup, {}

    def one_setup(config, sets):
        sizes = [
            getattr(config.reweight, name)
            for name in "network width depth heads weighting hidden".split()
        ]
        settings = [config.inner, config.hypergrad, config.optimizer]
        example = sets.train.inputs.shape[1:], sets.num_classes, sets.vocabulary
        made = make_setup(config, sets)
        made = made._replace(init=jax.jit(made.init))
        first = setups.setdefault((*sizes, *settings, example), made)
        shared = "init logits optimizer weighting estimator".split()
        return made._replace(**{name: getattr(first, name) for name in shared})

    rounds = {}

    def one_round(logits, *others, **sizes):
        made = training.make_round(logits, *others, **sizes)
        return rounds.setdefault((logits, *sizes.items()), made)

    plain = functools.cache(training.make_plain_training)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reweight_run, "make_setup", one_setup)
        patch.setattr(loop, "make_round", one_round)
        patch.setattr(setup, "make_plain_training", plain)
        yield


def test_learned_weights_find_wrong_labels_and_help(as_users_run_it, tmp_path):
    config = load_config("sama_reweight", train__steps=400)
    table = run_reweighting(config, tmp_path)
    rows = read_rows(tmp_path / "metrics.jsonl")
    tests = {r["learner"]: r for r in rows if r["split"] == "test"}
    plain, clean, learned = (
        tests[name]["mean"]
        for name in ("all examples equal", "the clean ones alone", "learned weights")
    )
    assert learned > max(plain, clean) + 0.03
    weights = tests["weights"]
    assert weights["share_wrong"] > 0.8 > weights["share_wrong_of_all"]
    assert f"{100 * learned:.2f}" in table
    assert np.load(tmp_path / "weights.npy").shape == (1000,)


SMALL = {
    "train__steps": 6,
    "train__valid_every": 2,
    "reweight__train_size": 100,
    "reweight__seeds": 2,
    "reweight__keep": "0.5",
    "reweight__width": 8,
    "reweight__depth": 1,
    "reweight__heads": 2,
    "reweight__hidden": 4,
    "reweight__vocabulary": 20,
    "reweight__length": 4,
}


@pytest.mark.parametrize(
    "through,weighting,stop",
    [
        ("sama", "meta_weight_net", interrupt),
        ("sama", "meta_weight_net", terminate),
        ("conjugate_gradient", "per_example", terminate),
    ],
)
def test_a_stopped_run_ends_as_if_it_had_not_been(
    as_users_run_it, tmp_path, monkeypatch, one_program, through, weighting, stop
):
    choice = {"hypergrad__through": through, "reweight__weighting": weighting}
    config = load_config(
        "sama_reweight", **SMALL | choice | {"hypergrad__damping": 1.0}
    )
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    table = run_reweighting(config, whole)

    with monkeypatch.context() as patch:
        after_step(patch, 5, stop)
        with pytest.raises((KeyboardInterrupt, Preempted)):
            run_reweighting(config, stopped)
    assert not (stopped / "weights.npy").exists()
    assert run_reweighting(config, stopped) == table
    for name in ("metrics.jsonl", "weights.npy"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()


def test_pruning_leaves_a_row_for_every_network_and_goes_on(
    as_users_run_it, tmp_path, one_program
):
    config = load_config("sama_prune", "noisy", **SMALL)
    table = run_reweighting(config, tmp_path)
    path = tmp_path / "pruning.jsonl"
    rows = read_rows(path)
    rules = {r["rule"] for r in rows}
    assert len(rows) == 2 * (8 + 1) and "learned weights" in rules
    assert {r["kept"] for r in rows} == {50, 100}
    assert all(0 <= r["share_wrong"] < 0.5 for r in rows)
    for rule in rules - {"everything"}:
        assert rule in table
    hardest, easiest = (
        next(r for r in rows if r["rule"] == f"loss, {name}")["share_wrong"]
        for name in ("hardest", "easiest")
    )
    assert hardest + easiest == pytest.approx(2 * rows[0]["share_wrong"])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:5]) + lines[5][:20])  # as a kill may leave it
    assert run_reweighting(config, tmp_path) == table
    assert read_rows(path) == rows


@pytest.mark.parametrize(
    "variants,changes",
    [
        ("text", {"reweight__train_size": 30, "reweight__meta_size": 6}),
        (
            "",
            {
                "data__dataset": "synthetic",
                "data__image_size": 16,
                "backbone__width": 8,
                "reweight__train_size": 60,
            },
        ),
    ],
)
def test_texts_and_features_of_images_serve(
    as_users_run_it, tmp_path, one_program, variants, changes
):
    config = load_config("sama_reweight", variants, **SMALL | changes)
    assert "learned weights" in run_reweighting(config, tmp_path)


@pytest.mark.parametrize("data", ["text", "tsv"])
def test_the_full_size_is_that_of_bert_base(as_users_run_it, tmp_path, data):
    """Nothing of it is computed: BERT-base has 85 million weights, and embeddings."""
    lines = [f"{'ab'[i % 2]}\tword{i % 2} w{i}\n" for i in range(30)]
    root = write_tsv(tmp_path, train="".join(lines), meta=lines[0], test=lines[1])
    changes = {"data__root": str(root), "reweight__train_size": 30}
    config = load_config("sama_reweight", f"{data},bert_base", **changes)
    made = setup.make_setup(config, make_sets(config))
    params = jax.eval_shape(made.init, jax.random.key(0))
    embeddings = made.sets.vocabulary * 768
    count = sum(x.size for x in jax.tree.leaves(params))
    assert 85e6 < count - embeddings < 86e6
    assert made.sets.train.inputs.shape == (30, 128)
    tokens = jax.ShapeDtypeStruct((2, 128), jnp.int32)
    logits = jax.eval_shape(made.logits, params, tokens)
    assert logits.shape == (2, made.sets.num_classes)


@pytest.mark.parametrize("data", ["omniglot", "folder"])
def test_rates_for_features_are_of_the_weighting_in_either_order(data):
    rates = {
        variants: load_config("sama_reweight", variants).optimizer.learning_rate
        for variants in (data, f"{data},per_example", f"per_example,{data}")
    }
    assert list(rates.values()) == [3e-4, 3e-2, 3e-2]


def test_tsv_sets_keep_their_own_sizes(as_users_run_it, tmp_path, one_program):
    lines = [f"{'abcd'[i % 4]}\tword{i % 2} w{i}\n" for i in range(30)]
    parts = {"train": lines, "meta": lines[:6], "test": lines[6:12]}
    root = write_tsv(tmp_path, **{k: "".join(x) for k, x in parts.items()})
    config = load_config("sama_reweight", "tsv", **SMALL | {"data__root": str(root)})
    table = run_reweighting(config, tmp_path / "run")
    assert "learned weights" in table and "wrong" not in table
    assert np.load(tmp_path / "run/weights.npy").shape == (30,)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"reweight__job": "weigh"}, "unknown reweight.job 'weigh'"),
        ({"reweight__noise": 1.0}, "reweight.noise=1.0"),
        ({"reweight__train_size": 1790}, "leave none of the 1797 examples"),
        ({"reweight__meta_size": 0}, "reweight.meta_size=0"),
        ({"reweight__weighting": "mwn"}, "unknown reweight.weighting 'mwn'"),
        ({"reweight__network": "cnn"}, "unknown reweight.network 'cnn'"),
        ({"reweight__network": "transformer"}, "reads texts, and data.dataset=digits"),
        ({"data__dataset": "text"}, "reads vectors, and data.dataset=text"),
        ({"reweight__heads": 3}, "reweight.width=128 is no multiple"),
        ({"hypergrad__through": "unrolled"}, "unknown hypergrad.through 'unrolled'"),
        ({"inner__optimizer": "lion"}, "unknown inner.optimizer 'lion'"),
        ({"inner__steps": 0}, "inner.steps=0"),
        ({"reweight__keep": "0.5,1.5"}, "reweight.keep=0.5,1.5"),
        ({"reweight__keep": "half"}, "reweight.keep=half"),
        ({"reweight__hidden": 0}, "reweight.hidden=0"),
    ],
)
def test_settings_that_make_no_sense_are_named_before_anything_is_written(
    tmp_path, changes, message
):
    config = load_config("sama_prune", **changes)
    with pytest.raises(UserError, match=message):
        run_reweighting(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
