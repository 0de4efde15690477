"""What .github says can be done: forms and workflows are well formed, and their commands run here."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from robustspike.bench.cli import VERBS
from tests.support.bundles import measured
from tests.support.commands import robustspike

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
FORMS = sorted((GITHUB / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))


def read(path: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(path.read_text("utf-8"))
    return found


def scripts(workflow: str) -> Iterator[str]:
    for job in read(GITHUB / "workflows" / workflow)["jobs"].values():
        yield from (step["run"] for step in job["steps"] if "run" in step)


def script(workflow: str, word: str) -> str:
    (found,) = [text for text in scripts(workflow) if word in text]
    return found


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_has_what_a_form_needs(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= form.keys()
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in asked}) == len(asked) >= 4
    assert all(part["attributes"]["label"] for part in asked)
    assert all(part["attributes"]["options"] for part in asked if part["type"] == "dropdown")
    assert any(part.get("validations", {}).get("required") for part in asked)


def test_there_is_a_form_for_every_kind_of_submission() -> None:
    assert {path.stem for path in FORMS} == {"attack", "defense", "victim", "inputs", "dispute"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_verbs_that_there_are(path: Path) -> None:
    found = read(path)
    assert found[True]  # `on`, which YAML 1.1 reads as true
    lines = [line for text in scripts(path.name) for line in text.splitlines() if "robustspike " in line]
    for line in lines:
        words = shlex.split(line)
        assert words[words.index("robustspike") + 1] in VERBS
    assert lines
    assert not any("${{" in text for text in scripts(path.name))  # what others may write reaches no shell


def test_the_check_of_a_pull_request_runs_no_code_of_it() -> None:
    found = read(GITHUB / "workflows" / "submission.yml")
    (job,) = found["jobs"].values()
    (checkout,) = [step for step in job["steps"] if "checkout" in step.get("uses", "")]
    assert "with" not in checkout and "--trust" not in "".join(scripts("submission.yml"))
    assert found["permissions"] == {"contents": "read", "pull-requests": "write"}


def test_the_commands_of_both_workflows_do_what_they_say_on_a_tiny_bundle(tmp_path: Path) -> None:
    (tmp_path / "leaderboard" / "results").mkdir(parents=True)
    (tmp_path / "submissions" / "board").mkdir(parents=True)
    measured(tmp_path / "leaderboard" / "results" / "records", "fgsm.linf", samples=8)
    measured(tmp_path / "submissions" / "mine", "fgsm.linf", "pgd.linf", samples=8)

    words = shlex.split(script("submission.yml", "check-submission"))
    words = words[words.index("robustspike") + 1 :]
    done = robustspike(*words, "submissions/mine.zip", cwd=tmp_path)
    assert done.returncode == 0, done
    assert "2 records: 2 confirmed" in (tmp_path / "comment.md").read_text()

    (line,) = [text for text in script("site.yml", "leaderboard ").splitlines() if "robustspike" in text]
    words = [word.replace("*.zip", "mine.zip") for word in shlex.split(line)[1:]]
    assert robustspike(*words, cwd=tmp_path).returncode == 0
    page = (tmp_path / "site" / "board" / "leaderboard.html").read_text()
    assert "pgd.linf" in page and "claimed" in page


@pytest.mark.slow
def test_the_check_finds_what_a_pull_request_changed(tmp_path: Path) -> None:
    """Run the two steps as they are written, in a shell, on a repository with a pull request."""
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    origin = tmp_path / "origin"
    (origin / "leaderboard" / "results").mkdir(parents=True)
    measured(origin / "leaderboard" / "results" / "records", "fgsm.linf", samples=8)

    def call(*words: str, cwd: Path) -> None:
        subprocess.run([*git, *words], cwd=cwd, check=True, capture_output=True)

    call("init", ".", cwd=origin)
    call("add", "leaderboard/results/records.zip", cwd=origin)
    call("commit", "-m", "board", cwd=origin)
    call("checkout", "-b", "theirs", cwd=origin)
    (origin / "submissions").mkdir()
    measured(origin / "submissions" / "mine", "fgsm.linf", "pgd.linf", samples=8)
    (origin / "setup.py").write_text("raise SystemExit('code of a pull request')")
    call("add", "submissions/mine.zip", "setup.py", cwd=origin)
    call("commit", "-m", "rows", cwd=origin)
    call("update-ref", "refs/pull/7/head", "HEAD", cwd=origin)
    call("checkout", "main", cwd=origin)
    call("clone", str(origin), str(tmp_path / "work"), cwd=tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for word in ("git fetch", "check-submission"):
        subprocess.run(
            ["bash", "-e", "-c", script("submission.yml", word)],
            cwd=tmp_path / "work",
            env=os.environ | {"NUMBER": "7", "PATH": path},
            check=True,
        )
    assert "2 records: 2 confirmed" in (tmp_path / "work" / "comment.md").read_text()
    assert not (tmp_path / "work" / "setup.py").exists()
