"""Break one line at a time, and see that the suite notices.

    python -m tests.mutations [--only=NAME]

copies the tree to a temporary folder and does there, for each row of `MUTATIONS`, what
a hurried developer might have done. The tests that should notice run first; where they
stay green, the whole fast suite does. Every row prints a line: which test killed it, or
that it survived. The exit status is 1 if any survived.

`--only` takes the beginning of a name: a file's rows, such as `sampling`, or one row.
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutation(NamedTuple):
    """One line that is written otherwise.

    Attributes:
        name: What it is called, after its file.
        file: Where the line stands.
        before: The line without its indentation; it occurs once.
        after: What stands in its place.
        promise: What is no longer true.
        tests: Files or tests that should notice.
    """

    name: str
    file: str
    before: str
    after: str
    promise: str
    tests: tuple[str, ...]


MUTATIONS = [
    Mutation(
        "lite: the sampling rule is not used",
        "lite_jax/lite/backward.py",
        "return self.sampler.draw(key, population, self.num_backprop)",
        "return sample_all(population.mask)",
        "`sampling` says how the H examples are drawn",
        ("tests/lite_test.py::test_a_sampler_of_ones_own_is_used",),
    ),
    Mutation(
        "lite: a sub-sample is not weighted",
        "lite_jax/lite/operators.py",
        "total = in_accumulators(additive(args, chunk.examples, chunk.weights))",
        "total = in_accumulators(additive(args, chunk.examples, chunk.weights**0))",
        "a sub-sample's sum is scaled by N over its size",
        ("tests/lite_test.py::test_subsampling_the_set_is_biased_where_lite_is_not",),
    ),
    Mutation(
        "lite: the plain sum forgets the mask",
        "lite_jax/lite/chunks.py",
        "total = in_accumulators(summand(*whole_set(examples, mask)))",
        "total = in_accumulators(summand(*whole_set(examples, None)))",
        "padding does not count",
        (
            "tests/operator_contract_test.py::test_value_is_the_sum_of_what_the_mask_holds",
        ),
    ),
    Mutation(
        "lite: a key is not used up",
        "lite_jax/lite/arguments.py",
        "fresh = jax.random.split(key, 1)[0]",
        "fresh = jax.random.clone(key)",
        "two sums that share a key are found out",
        ("tests/lite_test.py::test_one_key_for_two_sums_raises",),
    ),
    Mutation(
        "lite: the exact gradient forgets its chunk size",
        "lite_jax/lite/transforms.py",
        "return jax.grad(_substitute(fun, exact_sum(chunk_size)), argnums, has_aux)",
        "return jax.grad(_substitute(fun, exact_sum()), argnums, has_aux)",
        "`chunk_size` sets how many examples are in memory",
        ("tests/lite_test.py::test_transforms_pass_the_chunk_size_on",),
    ),
    Mutation(
        "sampling: padding counts in N/H",
        "lite_jax/lite/sampling.py",
        "weight = total.astype(float) / jnp.maximum(count, 1).astype(float)",
        "weight = mask.size / jnp.maximum(count, 1).astype(float)",
        "uniform draws weigh N/H, N the real examples",
        ("tests/sampling_test.py::test_uniform_draws_every_subset_equally_often",),
    ),
    Mutation(
        "sampling: the last example is never drawn",
        "lite_jax/lite/sampling.py",
        "ranks = jax.random.randint(key, (num_backprop,), 0, jnp.maximum(total, 1))",
        "ranks = jax.random.randint("
        "key, (num_backprop,), 0, jnp.maximum(total - 1, 1))",
        "draws with replacement take all real examples equally often",
        ("tests/sampling_test.py::test_with_replacement_draws_independently",),
    ),
    Mutation(
        "sampling: classes are shuffled into each other",
        "lite_jax/lite/sampling.py",
        "order = _random_order(order_key, mask, _ranks(strata_key, strata))",
        "order = _random_order(order_key, mask)",
        "every class gives its share of a stratified draw",
        ("tests/sampling_test.py::test_every_class_gives_its_share",),
    ),
    Mutation(
        "sampling: draws by size have equal weights",
        "lite_jax/lite/sampling.py",
        "weights = step.astype(float) / jnp.maximum(ticks[indices], 1).astype(float)",
        "weights = jnp.full(num_backprop, order.size / num_backprop)",
        "a draw is weighted by the inverse of its chance",
        ("tests/sampling_test.py::test_weights_are_horvitz_thompson",),
    ),
    Mutation(
        "sampling: a place belongs to the example before",
        "lite_jax/lite/sampling.py",
        'positions = jnp.searchsorted(ends, first + numbers * step, side="right")',
        'positions = jnp.searchsorted(ends, first + numbers * step, side="left")',
        "chances are whole ticks, without rounding",
        ("tests/sampling_test.py::test_systematic_draws_are_unbiased_over_all_starts",),
    ),
    Mutation(
        "recompute: padding is drawn",
        "lite_jax/lite/backward.py",
        "full_mask(examples, mask),",
        "full_mask(examples, None),",
        "no gradient comes from padding",
        (
            "tests/operator_contract_test.py::"
            "test_rubbish_in_the_padding_does_not_count",
        ),
    ),
    Mutation(
        "recompute: the drawn are not weighted",
        "lite_jax/lite/backward.py",
        "plan.fun(*inputs) if plan.is_map else plan.fun(*inputs, chunk.weights)",
        "plan.fun(*inputs) if plan.is_map else plan.fun(*inputs, chunk.weights**0)",
        "the gradient's mean over draws is exact",
        ("tests/lite_test.py::test_mean_over_subsets_is_exact_at_every_h",),
    ),
    Mutation(
        "recompute: what is frozen is differentiated",
        "lite_jax/lite/backward.py",
        "return leaf.perturbed and inexact",
        "return inexact",
        "what is not differentiated costs nothing",
        ("tests/frozen_test.py",),
    ),
    Mutation(
        "recompute: the backward pass begins ahead of its cotangent",
        "lite_jax/lite/backward.py",
        "draw = _delay_until(plan.draw(key_data, population), cotangent)",
        "draw = plan.draw(key_data, population)",
        "one chunk is in memory, forward or backward",
        (
            "tests/memory_test.py::"
            "test_a_draw_of_one_chunk_takes_no_more_than_one_of_two",
        ),
    ),
    Mutation(
        "recompute: scores are of the first features alone",
        "lite_jax/lite/backward.py",
        "table = jnp.concatenate(tables, axis=1)",
        "table = tables[0]",
        "what matters is the derivative by all features of an example",
        ("tests/sampling_test.py::test_scores_are_of_all_features_of_an_example",),
    ),
    Mutation(
        "mahalanobis: the regulariser is dropped",
        "lite_jax/heads/mahalanobis.py",
        "return matrix + jnp.eye(k.mean.size, dtype=matrix.dtype)",
        "return matrix",
        "Q_k = λ_k S_k + (1 − λ_k) S + I",
        ("tests/mahalanobis_test.py",),
    ),
    Mutation(
        "mahalanobis: the class's covariance has the task's share",
        "lite_jax/heads/mahalanobis.py",
        "class_share = counts / (counts + 1) / jnp.maximum(counts - 1, 1)",
        "class_share = 1 / (counts + 1) / jnp.maximum(counts - 1, 1)",
        "λ_k = n_k / (n_k + 1)",
        ("tests/mahalanobis_test.py",),
    ),
    Mutation(
        "mahalanobis: the task's covariance is divided by N",
        "lite_jax/heads/mahalanobis.py",
        "task_share = 1 / (counts + 1) / jnp.maximum(total - 1, 1)",
        "task_share = 1 / (counts + 1) / jnp.maximum(total, 1)",
        "covariances are unbiased",
        ("tests/mahalanobis_test.py",),
    ),
    Mutation(
        "mahalanobis: the factor is taken for an upper one",
        "lite_jax/heads/mahalanobis.py",
        "y = cho_solve((factor, True), "
        "jnp.concatenate([inner, to_mean[None, :]]) * scales)",
        "y = cho_solve((factor, False), "
        "jnp.concatenate([inner, to_mean[None, :]]) * scales)",
        "distances are those of the formula where features outnumber examples",
        ("tests/mahalanobis_test.py",),
    ),
    Mutation(
        "mahalanobis: padding has rows of its own",
        "lite_jax/heads/mahalanobis.py",
        "rows = (features - centre[None, :]) * weights[:, None]",
        "rows = features - centre[None, :]",
        "padding may hold anything",
        ("tests/mahalanobis_test.py",),
    ),
    Mutation(
        "checkpoint: a slot keeps older checkpoints",
        "lite_jax/run/checkpoint.py",
        "max_to_keep=1,",
        "max_to_keep=2,",
        "a slot is one checkpoint, whatever the length of a run",
        ("tests/workdir_test.py",),
    ),
    Mutation(
        "checkpoint: only the first save counts",
        "lite_jax/run/checkpoint.py",
        "if step in self._manager.all_steps():",
        "if self._manager.all_steps():",
        "a slot keeps the newest checkpoint",
        ("tests/workdir_test.py",),
    ),
    Mutation(
        "checkpoint: what was not saved is passed over",
        "lite_jax/run/checkpoint.py",
        'raise OSError(f"checkpoint of step {step} was not saved")',
        "return",
        "a save is complete, or an error",
        ("tests/workdir_test.py",),
    ),
    Mutation(
        "checkpoint: numbers come back in another precision",
        "lite_jax/run/checkpoint.py",
        "expected = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)",
        "expected = jax.tree.map(lambda x: np.zeros(x.shape), template)",
        "a resumed run goes on from the very numbers it was stopped at",
        ("tests/workdir_test.py",),
    ),
    Mutation(
        "checkpoint: shapes are not compared",
        "lite_jax/run/checkpoint.py",
        "check_shapes(self._manager.directory, saved, expected)",
        "pass",
        "a checkpoint of another model is refused in a sentence",
        ("tests/workdir_test.py",),
    ),
]


def copied_tree(folder: Path) -> Path:
    """Copy what git knows, or would, and return the copy."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def mutated(source: str, mutation: Mutation) -> str:
    """Return the source with the one line replaced, at its indentation."""
    lines = source.splitlines(keepends=True)
    places = [i for i, line in enumerate(lines) if line.strip() == mutation.before]
    assert len(places) == 1, f"{mutation.name}: the line occurs {len(places)} times"
    lines[places[0]] = lines[places[0]].replace(mutation.before, mutation.after)
    return "".join(lines)


def python(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter in the copy, on the modules there."""
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        # A stale one would pass for the mutated file: both are of one second.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tree, env=environment, capture_output=True, text=True,
    )  # fmt: skip


def run_tests(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tests of the copy; exit if pytest cannot."""
    found = python(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)
    if found.returncode not in (0, 1):  # passed, failed
        sys.exit(f"pytest {' '.join(arguments)}:\n{found.stdout}{found.stderr}")
    return found


def killer(tree: Path, mutation: Mutation) -> str | None:
    """Return the test that notices the mutation, or None."""
    place = tree / mutation.file
    source = place.read_text(encoding="utf-8")
    place.write_text(mutated(source, mutation), encoding="utf-8")
    try:
        for selection in (mutation.tests, ("-n", "2")):
            found = run_tests(tree, "-x", *selection)
            if found.returncode:
                told = r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$"
                test = re.search(told, found.stdout, re.MULTILINE)
                return test[1] if test else found.stdout
    finally:
        place.write_text(source, encoding="utf-8")
    return None


def check_table(tree: Path, chosen: list[Mutation]) -> None:
    """Exit unless each line is there, and all named tests pass as things are."""
    for mutation in chosen:
        mutated((tree / mutation.file).read_text(encoding="utf-8"), mutation)
    origin = python(tree, "-c", "import lite_jax; print(lite_jax.__file__)").stdout
    assert Path(origin.strip()).is_relative_to(tree), f"{origin} is no copy"
    found = run_tests(tree, *sorted({test for row in chosen for test in row.tests}))
    if found.returncode:
        sys.exit(f"tests fail without a mutation:\n{found.stdout}")


def main(argv: list[str] | None = None) -> int:
    """Try the mutations; return 1 if one survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="the beginning of a name")
    only = parser.parse_args(argv).only
    chosen = [mutation for mutation in MUTATIONS if mutation.name.startswith(only)]
    if not chosen:
        parser.error(f"--only={only}: no mutation of that name")
    outcomes = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        tree = copied_tree(Path(folder).resolve())
        check_table(tree, chosen)
        for mutation in chosen:
            start = time.perf_counter()
            test = killer(tree, mutation)
            outcome = f"killed by {test}" if test else f"SURVIVED: {mutation.promise}"
            seconds = time.perf_counter() - start
            print(f"{mutation.name}: {outcome} ({seconds:.0f} s)", flush=True)
            outcomes[test is not None] += 1
    print(f"{outcomes[True]} killed, {outcomes[False]} survived")
    return int(outcomes[False] > 0)


if __name__ == "__main__":
    sys.exit(main())
