"""Whole benchmarks on miniature data: trained, scored, resumed, reported."""

import json

import jax
import numpy as np
import pytest
from made_orbit import orbit
from made_records import meta_dataset
from made_vtab import SUPPORT, vtab
from runs import load_config, use_one_block

from lite_jax import UserError
from lite_jax.apps.evaluations import published, vtab_md
from lite_jax.apps.evaluations.jobs import learner_of
from lite_jax.apps.evaluations.run import run_benchmark
from lite_jax.data.vtab.rules import GROUPS, VTAB
from lite_jax.data.vtab.tasks import vtab_task
from lite_jax.run.evaluate import make_scorer
from lite_jax.run.predictor import Predictor
from lite_jax.run.train import train_and_evaluate
from lite_jax.types import Examples, Task

SOURCES = ["omniglot", "aircraft"]
TINY = {
    "data__image_size": 16,
    "backbone__name": "conv4",
    "backbone__width": 8,
    "backbone__norm": "group",
    "gradient__num_backprop": 5,
    "gradient__chunk_size": 16,
    "train__steps": 1,
    "train__tasks_per_step": 1,
    "valid__tasks": 1,
    "test__tasks": 1,
}


@pytest.fixture(scope="module", autouse=True)
def small_network(as_users_run_it):
    """One block in place of Conv-4's four."""
    with pytest.MonkeyPatch.context() as patch:
        use_one_block(patch)
        yield


def tiny(name, variant, root, **changes):
    changes = TINY | {"data__root": str(root)} | changes
    return load_config(name, f"{variant},smoke", **changes)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return {
        "meta_dataset": meta_dataset(root / "records"),
        "vtab": vtab(root / "tfds"),
        "orbit": orbit(root / "orbit", frames=24),
    }


def vtab_md_config(roots, **changes):
    defaults = {
        "data__protocol": "md-v2",
        "data__sources": "omniglot,aircraft,ilsvrc_2012",
        "train__episode__way": (5, 6),
        "train__episode__max_support": 40,
        "valid__episode__way": (5, 6),
        "valid__episode__max_support": 40,
        "benchmark__vtab_root": str(roots["vtab"]),
        "benchmark__vtab_support": SUPPORT,
        "benchmark__episodes": 3,
        "benchmark__only": ",".join([*SOURCES, *VTAB]),
    }
    root = roots["meta_dataset"]
    return tiny("protonets", "vtab_md", root, **(defaults | changes))


@pytest.fixture(scope="module")
def trained(roots, tmp_path_factory, as_users_run_it):
    folder = tmp_path_factory.mktemp("vtab_md")
    results = train_and_evaluate(vtab_md_config(roots), folder)
    assert set(results) == {"md"}
    return folder


@pytest.fixture(scope="module")
def scored(roots, trained):
    """The report of the benchmark; its rows lie in the workdir."""
    return run_benchmark(vtab_md_config(roots), trained)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_vtab_md_is_scored_and_resumed_data_set_by_data_set(
    roots, trained, scored, monkeypatch, as_users_run_it
):
    config, path, report = vtab_md_config(roots), trained / "vtab_md.jsonl", scored
    rows = rows_of(path)
    assert [row["dataset"] for row in rows] == [*SOURCES, *VTAB]
    for row in rows:
        assert 0 <= row["accuracy"] <= 1 and row["seed"] == 0
        md = row["dataset"] in SOURCES
        assert (row["protocol"], row["resize"]) == (
            ("md-v2", "md") if md else ("official", "vtab")
        )
        assert row["part"] == ("MD-v2" if md else f"VTAB {GROUPS[row['dataset']]}")
        assert row["interval"].startswith("1.96 σ/√n" if md else "1.96 √(p(1-p)/n)")
    counts = {row["dataset"]: row["count"] for row in rows}
    assert (counts["aircraft"], counts["svhn"], counts["eurosat"]) == (3, 20, 8)
    mean = np.mean([row["accuracy"] for row in rows if row["part"] != "MD-v2"])
    (line,) = [x for x in report.splitlines() if x.startswith("VTAB all")]
    assert line.split()[2:] == [f"{100 * mean:.2f}", "18", "sets", "51.4*", "66.4"]
    (line,) = [x for x in report.splitlines() if x.startswith("aircraft")]
    assert line.endswith("not verified  not verified")

    # A file cut off in its fourth line is gone on with, to the same end.
    text = path.read_text()
    whole = text.splitlines(keepends=True)
    path.write_text("".join(whole[:3]) + whole[3][:40])
    ran = []
    monkeypatch.setattr(
        vtab_md, "_run_vtab_task",
        lambda config, params, task, predictor: ran.append(task.name) or {
            k: v for k, v in rows_of_text(text)[task.name].items()
        },
    )  # fmt: skip
    assert run_benchmark(config, trained) == report
    assert ran == list(VTAB[1:]) and rows_of(path) == rows


def rows_of_text(text):
    return {row["dataset"]: row for row in map(json.loads, text.splitlines())}


@pytest.mark.usefixtures("scored", "as_users_run_it")
def test_results_of_other_settings_are_not_mixed(roots, trained):
    config = vtab_md_config(roots, benchmark__only="svhn", benchmark__vtab_support=10)
    with pytest.raises(UserError, match="'support': 20.* and this run has.* 10"):
        run_benchmark(config, trained)


def test_a_test_set_read_in_batches_is_scored_as_one_task(
    roots, trained, as_users_run_it
):
    config = vtab_md_config(roots)
    task = vtab_task(roots["vtab"], "eurosat", 16, num_support=SUPPORT)
    learner = learner_of(config, 16)
    image = jax.ShapeDtypeStruct((16, 16, 3), np.uint8)
    params = learner.init(jax.random.key(1), image)
    predictor = Predictor(learner, 3, [3])
    support, test = (x.read(range(len(x))) for x in (task.support, task.test))
    found = predictor.predict(predictor.adapt(params, *support), test[0])
    whole = Task(full(*support), full(*test))
    expected = make_scorer(learner, 5)(params, whole)
    assert np.mean(found == test[1]) == pytest.approx(float(expected))
    assert len(set(found)) > 1


def full(images, labels):
    return Examples(images, labels, np.ones(len(labels), bool))


def test_orbit_is_scored_over_videos_and_users(roots, tmp_path, as_users_run_it):
    config = tiny(
        "protonets", "orbit", roots["orbit"],
        data__orbit_protocol="2021",
        train__episode__way=(2, 4), train__episode__max_support=12,
        train__episode__max_target=10, valid__episode__max_support=40,
        valid__episode__max_target=20,
        test__episodes__users__max_support=40, test__episodes__users__max_target=20,
    )  # fmt: skip
    train_and_evaluate(config, tmp_path)
    report = run_benchmark(config, tmp_path)
    rows = rows_of(tmp_path / "orbit.jsonl")
    assert [row["user"] for row in rows] == ["P000", "P001", "P002"]
    assert [len(row["videos"]) for row in rows] == [6, 4, 8]
    frames = {
        user: np.mean([v["frame_accuracy"] for v in row["videos"].values()])
        for user, row in zip("abc", rows, strict=True)
    }
    (line,) = [x for x in report.splitlines() if x.startswith("frame accuracy")]
    assert f"{100 * np.mean(list(frames.values())):.2f} ±" in line
    assert line.endswith("66.3*")  # of ProtoNets on clutter videos, as of 2021
    # The objects' brightness tells them apart.
    assert np.mean(list(frames.values())) > 0.8
    assert run_benchmark(config, tmp_path) == report
    assert len(rows_of(tmp_path / "orbit.jsonl")) == 3


# ----------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"benchmark__name": "vtab"}, "unknown benchmark.name 'vtab'; did you mean"),
        ({"benchmark__only": "svhm"}, "benchmark.only 'svhm'; did you mean 'svhn'"),
        ({"benchmark__vtab_root": ""}, "benchmark.vtab_root is empty"),
        ({"benchmark__vtab_protocol": "offical"}, "did you mean 'official'"),
        ({"data__protocol": "md-v3"}, "unknown data.protocol 'md-v3'"),
        ({"benchmark__only": "fungi"}, "has no folder 'fungi'"),
        ({"backbone__width": 16}, "backbone.width is 8 there and 16 here"),
        ({"benchmark__name": "orbit"}, "needs data.dataset=orbit"),
    ],
)
def test_benchmarks_that_cannot_run_are_explained(
    roots, trained, changes, message, as_users_run_it
):
    with pytest.raises(UserError, match=message):
        run_benchmark(vtab_md_config(roots, **changes), trained)


def test_all_missing_tasks_are_named_at_once(roots, trained, tmp_path, as_users_run_it):
    changes = {"benchmark__vtab_root": str(tmp_path), "benchmark__only": "svhn,dmlab"}
    with pytest.raises(
        UserError, match=r"2 of 2 VTAB tasks .*\(svhn, dmlab\).* `tfds build svhn"
    ):
        run_benchmark(vtab_md_config(roots, **changes), trained)


def test_a_workdir_without_a_checkpoint_is_named(roots, tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        run_benchmark(vtab_md_config(roots), tmp_path)


def test_published_means_follow_from_the_tasks():
    found = published.FINE_TUNED_VTAB
    for group in ("natural", "specialized", "structured"):
        own = [found[name].percent for name in VTAB if GROUPS[name] == group]
        assert np.mean(own) == pytest.approx(found[f"VTAB {group}"].percent, abs=0.1)
    everything = [found[name].percent for name in VTAB]
    assert np.mean(everything) == pytest.approx(found["VTAB all"].percent, abs=0.1)
    assert {x.status for x in found.values()} == {"verified"}


def test_means_are_only_of_complete_parts():
    rows = [{"dataset": n, "part": f"VTAB {GROUPS[n]}"} for n in VTAB]
    assert set(vtab_md.means(rows)) == {
        "VTAB natural", "VTAB specialized", "VTAB structured", "VTAB all",
    }  # fmt: skip
    assert set(vtab_md.means(rows[1:])) == {"VTAB specialized", "VTAB structured"}
    md = [{"dataset": str(i), "part": "MD-v2"} for i in range(8)]
    assert list(vtab_md.means(md)) == ["MD-v2"] and not vtab_md.means(md[1:])
