"""What the documents say, tried: the README's Python runs, its files exist."""

import re
from pathlib import Path

import pytest

import lite_jax

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

pytestmark = pytest.mark.usefixtures("as_users_run_it")


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("name", ["README.md", "docs/index.md", "docs/learner.md"])
def test_python_of_the_documents_runs_in_order(name, capsys):
    space, found = {}, blocks("python", (ROOT / name).read_text())
    for block in found:
        exec(compile(block, name, "exec"), space)
    printed = capsys.readouterr().out.split()
    promised = re.findall(r"print\(.*\)  # (.*)", "\n".join(found))
    assert promised and printed == " ".join(promised).split()


def test_the_example_of_the_readme_is_a_dozen_lines():
    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line]) <= 12


def test_both_commands_stand_in_the_readme_as_promised():
    commands = "".join(blocks("sh"))
    assert (
        "pip install -e . && python -m lite_jax.main --config=configs/protonets.py\n"
        in commands
    )
    assert "pip install -e '.[test]' && python -m pytest -n 2\n" in commands


def test_files_and_modules_that_the_readme_names_exist():
    for pattern, path in (
        (r"`((?:benchmarks|configs|experiments|tests|lite_jax)/[\w/.]*)`", "{}"),
        (r"python -m experiments\.(\w+)", "experiments/{}.py"),
        (r"python -m benchmarks\.(\w+)", "benchmarks/{}.py"),
        (r"--config=(configs/\w+\.py)", "{}"),
    ):
        names = re.findall(pattern, README)
        assert names
        for name in names:
            assert (ROOT / path.format(name)).exists(), name


def test_every_document_has_its_place_on_the_site():
    placed = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    found = {str(x.relative_to(ROOT / "docs")) for x in (ROOT / "docs").rglob("*.md")}
    assert set(placed) == found


def test_links_between_documents_lead_somewhere():
    links = [
        (path, target)
        for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md"))
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text())
        if "://" not in target
    ]
    assert len(links) > 20
    for path, target in links:
        assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_public_names_are_few_and_documented():
    assert len(lite_jax.__all__) <= 32
    for name in set(lite_jax.__all__) - {"GradFn"}:  # an alias, documented in types
        assert getattr(lite_jax, name).__doc__, name


def test_changelog_has_the_version():
    assert f"## {lite_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_documents_name_no_place_of_their_making():
    """Paths and hosts of a developer's machine have no business in the repository."""
    suffixes = {".py", ".md", ".toml", ".jsonl"}
    for path in ROOT.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(ROOT).parts)
        if path.suffix in suffixes and not hidden and "runs" not in path.parts:
            text = path.read_text()
            assert "/" + "root/" not in text and "/" + "tmp/" not in text, path
