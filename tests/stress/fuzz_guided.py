"""Readers under coverage-guided fuzzing: libFuzzer, by Atheris.

    pip install -e '.[test]'
    python -m tests.stress.fuzz_guided [--runs=100000] [--smoke]
        [--out=experiments/results/fuzz_guided.jsonl]

The readers, whole files and promises of `tests.stress.fuzz`; a change to a file is kept
where it reaches new places of `lite_jax.data` or of what reads runs and classifiers. A
row tells the places reached by whole files alone, and at the end.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.sections import Section, columns

INSTRUMENTED = ["lite_jax.data", "lite_jax.run.workdir", "lite_jax.classify", "zipfile"]
_MOST_MB = 4096  # resident, JAX included
_MOST_SECONDS = 30  # of one file


def main() -> None:
    """Emit a row for each reader, or fuzz one in this process."""
    if sys.argv[1:2] == ["--reader"]:  # before anything is imported uninstrumented
        fuzz(sys.argv[2], int(sys.argv[3]))
        return
    from experiments.rows import emit, parser
    from tests.stress.fuzz import READERS

    found = parser("readers given files that reach new lines")
    found.add_argument("--runs", type=int, default=100_000, help="of each reader")
    arguments = found.parse_args()
    runs = 200 if arguments.smoke else arguments.runs
    for name in list(READERS)[:2] if arguments.smoke else READERS:
        row = {"experiment": "fuzz_guided", "reader": name}
        emit(arguments.out, row | fuzzed(name, runs))


def fuzzed(name: str, runs: int) -> dict[str, Any]:
    """Return what a process of its own came to.

    Raises:
        RuntimeError: A file ended a reader otherwise than by a `UserError`.
    """
    command = [sys.executable, "-m", "tests.stress.fuzz_guided"]
    child = subprocess.run(
        [*command, "--reader", name, str(runs)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
    )  # fmt: skip
    done = re.search(r"Done (\d+) runs in (\d+) second", child.stderr)
    if child.returncode or done is None:
        raise RuntimeError(f"{name}: {child.stderr[-4000:]}")
    reached = [int(x) for x in re.findall(r"cov: (\d+)", child.stderr)]
    return {
        "runs": int(done[1]),
        "reached_by_whole_files": reached[0],
        "reached": reached[-1],
        "seconds": int(done[2]),
    }


def fuzz(name: str, runs: int) -> None:
    """Fuzz a reader; libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.stress.fuzz import FOUND, run, samples

    folder = Path(tempfile.mkdtemp())
    known = [file for reader, file in FOUND if reader == name]
    for place in ("corpus", "inputs"):
        (folder / place).mkdir()
    for number, file in enumerate([*samples(name), *known]):
        (folder / "corpus" / str(number)).write_bytes(file)

    def one(content: bytes) -> None:
        run(name, content, folder / "inputs")

    limits = [
        f"-rss_limit_mb={_MOST_MB}",
        f"-timeout={_MOST_SECONDS}",
        "-max_len=65536",
    ]
    options = [f"-runs={runs}", "-artifact_prefix=" + str(folder) + "/", *limits]
    atheris.Setup([sys.argv[0], *options, str(folder / "corpus")], one)
    atheris.Fuzz()


SECTIONS = (
    Section(
        "Broken files, by coverage",
        "fuzz_guided",
        "python -m tests.stress.fuzz_guided",
        "The same readers under libFuzzer: places of the code reached by whole files "
        "alone, and at the end.",
        lambda rows: columns(
            rows, "reader", "runs", "reached_by_whole_files", "reached", "seconds"
        ),
    ),
)


if __name__ == "__main__":
    main()
