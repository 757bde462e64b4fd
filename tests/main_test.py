"""The command line as a user meets it: one message, exit code 1, no traceback."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl.testing import flagsaver
from ml_collections import ConfigDict
from runs import config_of

from lite_jax.cli import program
from lite_jax.cli.program import _setting_names

pytestmark = [
    pytest.mark.usefixtures("as_users_run_it"),
    pytest.mark.filterwarnings("ignore:the load_module.*:DeprecationWarning"),
]
ROOT = Path(__file__).parents[1]
SMALL = [
    "--config.data.image_size=16", "--config.backbone.width=8",
    "--config.backbone.norm_groups=2", "--config.train.episode.way=3,3",
    "--config.train.episode.query=2", "--config.gradient.num_backprop=4",
]  # fmt: skip


def as_process(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "lite_jax.main", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.fixture
def lite_jax(capsys, monkeypatch):
    """The command as a call in this process: what it prints, and its exit code."""
    loggers = logging.root, logging.getLogger("lite_jax")
    kept = [(x.level, x.propagate, x.handlers[:]) for x in loggers]

    def run(*arguments, cwd=ROOT):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["lite_jax.main", *arguments])
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as stop:
            program.run()
        printed, code = capsys.readouterr(), stop.value.code
        if isinstance(code, str):  # as Python ends a process with a message
            printed, code = printed._replace(err=f"{printed.err}{code}\n"), 1
        return subprocess.CompletedProcess(arguments, code or 0, *printed)

    yield run
    for logger, (level, propagate, handlers) in zip(loggers, kept, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers[:] = propagate, handlers


def test_the_command_trains_evaluates_and_leaves_a_workdir(lite_jax, tmp_path):
    """It trains in a process of its own, and evaluates in this one."""
    arguments = ["--config=configs/protonets.py:synthetic,smoke", *SMALL]
    arguments.append(f"--workdir={tmp_path / 'run'}")
    trained = as_process(*arguments)
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
    found = as_process("--help")
    assert "--workdir" in found.stdout and "<train|eval|export>" in found.stdout


def test_default_workdir_is_named_after_the_run(lite_jax, tmp_path):
    config = f"--config={ROOT / 'configs/protonets.py'}:synthetic,smoke"
    small = [
        "--config.backbone.name=pixels", "--config.train.steps=0",
        "--config.valid.tasks=0", "--config.test.tasks=1",
    ]  # fmt: skip
    found = lite_jax(config, *SMALL, *small, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    path = tmp_path / "runs/protonets_synthetic_smoke/config.json"
    assert json.loads(path.read_text())["train"]["steps"] == 0


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
        ([CONFIG, "--config.learner.foo=1"], "unknown setting 'config.learner.foo'"),
        (["--config=configs"], "--config=configs: a folder; name a file in it"),
        ([CONFIG, "--mode=test"], "should be one of <train|eval|export>"),
        ([CONFIG, "--wrokdir=x"], "Did you mean: workdir"),
        ([CONFIG, "extra"], "unexpected argument 'extra'"),
        (["--config.train.steps=3", CONFIG], "config"),
        ([CONFIG, "--config.data.dataset=digit"], "did you mean 'digits'"),
        ([CONFIG, "--config.data.dataset=folder"], "set data.root=FOLDER"),
        (
            [CONFIG, "--config.data.dataset=folder", "--config.data.root=nowhere"],
            "data.root=nowhere: no such folder",
        ),
        ([CONFIG, "--config.train.episode.way=5,999"], "is more than the 80 classes"),
        ([CONFIG, "--config.gradient.num_backprop=0"], "gradient.num_backprop=0"),
        ([CONFIG, "--mode=eval"], "holds no checkpoint to evaluate"),
        ([CONFIG, "--mode=export"], "learns no plan: export a run of configs/pmeta"),
        ([PMETA, "--mode=export"], "holds no checkpoint"),
        ([WEIGHTS, "--mode=eval"], "has only --mode=train"),
        ([WEIGHTS, "--hosts=auto"], "leave --hosts out"),
        ([POLICY, "--mode=export"], "has only --mode=train or --mode=eval"),
        ([POLICY, "--mode=eval"], "holds no checkpoint"),
    ],
)
def test_mistake_is_one_message_and_exit_code_1(lite_jax, arguments, message, tmp_path):
    found = lite_jax(*arguments, f"--workdir={tmp_path / 'run'}")
    assert found.returncode == 1, found.stdout + found.stderr
    assert "Traceback" not in found.stderr and found.stdout == ""
    (error,) = [x for x in found.stderr.splitlines() if x.startswith("error: ")]
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", "SyntaxError"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("x = 1 / 0", "ZeroDivisionError"),
        ("x = 1", "get_config"),
    ],
)
def test_a_config_file_that_fails_is_one_message(tmp_path, text, message):
    """In a process: in this one a file would be read over the last one's names."""
    path = tmp_path / "broken.py"
    path.write_text(text)
    found = as_process(f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert found.returncode == 1 and "Traceback" not in found.stderr
    (error,) = found.stderr.splitlines()
    assert error.startswith("error: ") and message in error


def test_a_process_ends_by_a_mistake_as_a_call_does(lite_jax):
    arguments = [CONFIG, "--config.train.stepz=3"]
    call, process = lite_jax(*arguments), as_process(*arguments)
    assert process.returncode == call.returncode == 1
    assert process.stderr == call.stderr and process.stdout == call.stdout == ""


def test_setting_names_are_dotted():
    config = ConfigDict({"a": 1, "b": {"c": 2, "d": {"e": 3}}})
    assert _setting_names(config, "config") == [
        "config.a",
        "config.b.c",
        "config.b.d.e",
    ]
    assert "config.gradient.num_backprop" in _setting_names(config_of(), "config")
