"""The command line as a user meets it: one message, exit code 1, no traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from runs import tiny_config

from lite_jax.main import _setting_names

ROOT = Path(__file__).parents[1]
SMALL = [
    "--config.data.image_size=16", "--config.backbone.width=8",
    "--config.backbone.norm_groups=2", "--config.train.episode.way=3,3",
    "--config.train.episode.query=2", "--config.gradient.num_backprop=4",
]  # fmt: skip


def lite_jax(*arguments, cwd=ROOT):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "lite_jax.main", *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def test_the_command_trains_evaluates_and_leaves_a_workdir(tmp_path):
    arguments = ["--config=configs/protonets.py:synthetic,smoke", *SMALL]
    arguments.append(f"--workdir={tmp_path / 'run'}")
    trained = lite_jax(*arguments)
    assert trained.returncode == 0, trained.stderr
    header, rule, one_shot, five_shot, workdir = trained.stdout.splitlines()
    assert header.split() == ["test", "episodes", "protonets", "raw", "pixels", "tasks"]
    assert one_shot.startswith("5-way 1-shot") and " ± " in one_shot
    assert (
        five_shot.startswith("5-way 5-shot") and workdir == f"workdir: {tmp_path}/run"
    )
    assert "gradient: lite, H = 4" in trained.stderr
    assert "4/4" in trained.stderr and "loss=" in trained.stderr
    evaluated = lite_jax(*arguments, "--mode=eval")
    assert evaluated.returncode == 0, evaluated.stderr
    assert evaluated.stdout == trained.stdout


def test_help_lists_the_flags():
    found = lite_jax("--help")
    assert "--workdir" in found.stdout and "<train|eval|export>" in found.stdout


def test_default_workdir_is_named_after_the_run(tmp_path):
    config = f"--config={ROOT / 'configs/protonets.py'}:synthetic,smoke"
    small = [
        "--config.train.steps=1",
        "--config.valid.tasks=0",
        "--config.test.tasks=1",
    ]
    found = lite_jax(config, *SMALL, *small, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    path = tmp_path / "runs/protonets_synthetic_smoke/config.json"
    assert json.loads(path.read_text())["train"]["steps"] == 1


CONFIG = "--config=configs/protonets.py:synthetic,smoke"
PMETA = "--config=configs/pmeta.py:synthetic,smoke"
WEIGHTS = "--config=configs/sama_reweight.py"
POLICY = "--config=configs/pmeta_rl.py"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--config is missing, e.g. --config=configs/protonets.py"),
        (
            ["--config=configs/protonet.py"],
            "--config=configs/protonet.py: no such file",
        ),
        (["--config=configs/protonets.py:omniglt"], "did you mean 'omniglot'"),
        ([CONFIG, "--config.train.stepz=3"], "did you mean 'config.train.steps'"),
        ([CONFIG, "--config.trian.steps=3"], "did you mean 'config.train.steps'"),
        ([CONFIG, "--config.train.steps=many"], "config.train.steps"),
        ([CONFIG, "--config.train=3"], "config.train"),
        ([CONFIG, "--mode=test"], "should be one of <train|eval|export>"),
        ([CONFIG, "--wrokdir=x"], "Did you mean: workdir"),
        ([CONFIG, "extra"], "unexpected argument 'extra'"),
        (["--config.train.steps=3", CONFIG], "config"),
        ([CONFIG, "--config.data.dataset=digit"], "did you mean 'digits'"),
        ([CONFIG, "--config.data.dataset=folder"], "set --config.data.root=FOLDER"),
        (
            [CONFIG, "--config.data.dataset=folder", "--config.data.root=nowhere"],
            "data.root=nowhere: no such folder",
        ),
        ([CONFIG, "--config.train.episode.way=5,999"], "classes there are"),
        ([CONFIG, "--config.gradient.num_backprop=0"], "gradient.num_backprop=0"),
        ([CONFIG, "--mode=eval"], "holds no checkpoint to evaluate"),
        ([CONFIG, "--mode=export"], "learns no plan: export a run of configs/pmeta"),
        ([PMETA, "--mode=export"], "holds no checkpoint"),
        ([WEIGHTS, "--mode=eval"], "--mode=train alone"),
        ([WEIGHTS, "--hosts=auto"], "leave --hosts out"),
        ([POLICY, "--mode=export"], "--mode=train or --mode=eval alone"),
        ([POLICY, "--mode=eval"], "holds no checkpoint"),
    ],
)
def test_mistake_is_one_message_and_exit_code_1(arguments, message, tmp_path):
    found = lite_jax(*arguments, f"--workdir={tmp_path / 'run'}")
    assert found.returncode == 1, found.stdout + found.stderr
    assert "Traceback" not in found.stderr and found.stdout == ""
    (error,) = [x for x in found.stderr.splitlines() if x.startswith("error: ")]
    assert message in error
    assert not (tmp_path / "run").exists()


def test_setting_names_are_dotted():
    config = ConfigDict({"a": 1, "b": {"c": 2, "d": {"e": 3}}})
    assert _setting_names(config, "config") == [
        "config.a",
        "config.b.c",
        "config.b.d.e",
    ]
    assert "config.gradient.num_backprop" in _setting_names(tiny_config(), "config")
