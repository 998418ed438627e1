"""The contributor kit: each file parses, and every command and path that it names exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

import m2f_cli
from m2f_cli import plugins

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
RECIPES = {"setup", "check", "test", "test-fast", "docs", "bench", "fuzz", "matrix"}
CFF_REQUIRED = {"cff-version", "message", "title", "authors"}  # of the schema 1.2.0
REFERENCE_REQUIRED = {"type", "title", "authors"}


def read_yaml(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def extra(name: str) -> list[str]:
    return re.findall(r'"([\w-]+)', re.search(rf"^{name} = \[(.*?)^\]", PYPROJECT, re.M | re.S)[1])


TOOLS = {"pip", "bash", "python", "mkdocs", *extra("test"), *re.findall(r"^(\w+) = \"m2f_cli", PYPROJECT, re.M)}


def recipes() -> dict[str, list[str]]:
    """The lines of each recipe of the justfile."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "justfile").read_text(encoding="utf-8").splitlines():
        if head := re.fullmatch(r"([\w-]+):", line):
            found[head[1]] = []
        elif line.startswith("    "):
            next(reversed(found.values())).append(line.strip())
        else:
            assert not line or line.startswith("#"), line
    return found


def bash_lines(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [line for block in re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S) for line in block.splitlines()]


def problems(command: str) -> list[str]:
    """What in a command does not exist."""
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z]\w+=", word)]  # no variables
    missing = [] if words[0] in TOOLS else [f"the tool {words[0]}"]
    if words[0] == "m2f" and words[1] not in plugins.BUILT_IN["commands"]:
        missing.append(f"m2f {words[1]}")
    for word in words[1:]:
        asked = re.search(r"\[(\w+)\]$", word)
        if asked and not re.search(rf"^{asked[1]} = \[", PYPROJECT, re.M):
            missing.append(f"the extra {asked[1]}")
        ours = re.match(r"(?:tests|examples|docs|benchmarks|\.ci)/", word)
        if ours and not (ROOT / word).exists():
            missing.append(word)
    return missing


def test_problems_are_found():
    assert not problems('pip install -e ".[test]"') and not problems("pytest -x tests/metrics")
    assert problems("tox") and problems("m2f fly") and problems("pytest tests/nowhere")
    assert problems('pip install -e ".[nothing]"')


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "examples/README.md", "examples/plugin_backbone/README.md"])
def test_commands_of_a_page_exist(page):
    lines = bash_lines(page)
    assert lines and not [problem for line in lines for problem in problems(line)]


def test_recipes_exist_and_their_commands_too():
    found = recipes()
    default = found.pop("default")
    assert set(found) >= RECIPES and default == ["@just --list"]
    assert not [problem for lines in found.values() for line in lines for problem in problems(line)]
    named = set(re.findall(r"`just ([\w-]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert named == set(found)


def test_citation_has_what_the_schema_requires():
    citation = read_yaml("CITATION.cff")
    assert citation.keys() >= CFF_REQUIRED and citation["cff-version"] == "1.2.0"
    assert citation["version"] == m2f_cli.__version__ and citation["license"] == "Apache-2.0"
    assert all(author.keys() & {"name", "family-names"} for author in citation["authors"])
    papers = citation["references"]
    assert [paper["url"].rpartition("/")[2] for paper in papers] == ["2112.01527", "2107.06278", "2303.07336"]
    for paper in papers:
        assert paper.keys() >= REFERENCE_REQUIRED and isinstance(paper["year"], int)
        assert all(author.keys() == {"family-names", "given-names"} for author in paper["authors"])


def test_hooks_before_a_commit():
    hooks = []
    for repository in read_yaml(".pre-commit-config.yaml")["repos"]:
        is_local = repository["repo"] == "local"
        assert is_local or (repository["repo"].startswith("https://github.com/") and repository["rev"])
        hooks += [hook["id"] for hook in repository["hooks"]]
        assert not is_local or not [p for hook in repository["hooks"] for p in problems(hook["entry"])]
    assert {"ruff-check", "ruff-format", "codespell", "end-of-file-fixer"} <= set(hooks)


def test_ci_runs_the_oldest_and_the_newest_versions():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    tree = yaml.safe_load(text)
    assert tree["permissions"] == {"contents": "read"} and "secrets" not in text
    job = tree["jobs"]["test"]
    oldest, newest = job["strategy"]["matrix"]["include"]
    assert f'requires-python = ">={oldest["python"]}"' in PYPROJECT and newest == {"python": "3.x", "torch": ""}
    assert f'"{oldest["torch"].replace("==", ">=").removesuffix(".*")}"' in PYPROJECT
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert "bash .ci/run" in commands and not problems("bash .ci/run")
    audit = [step["run"] for step in tree["jobs"]["audit"]["steps"] if "run" in step]
    assert any("pip install" in command for command in audit) and any("pip-audit" in command for command in audit[-1:])


def test_files_of_text_end_in_one_line_break():
    kit = ["CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", ".pre-commit-config.yaml", "justfile", "README.md"]
    for name in kit:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert text.endswith("\n") and not text.endswith("\n\n"), name
