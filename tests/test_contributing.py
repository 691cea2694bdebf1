"""What CONTRIBUTING says works: its diffs are applied to a copy of the project, and run."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import save_tiny

import seqcirc_utils
from seqcirc_utils import store
from seqcirc_utils.models import fetching, zoo

PAGE = (store.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = ("task", "model", "stage", "claim")
MADE = ("results", "_build", "runs", "__pycache__", "*.egg-info", ".git", ".venv", ".snakemake")

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="git applies the diffs")


def diff(example: str) -> str:
    """The diff that the page shows under ``Add a …``."""
    section = PAGE.split(f"\n## Add a {example}\n")[1].split("\n## ")[0]
    (found,) = re.findall(r"(?ms)^```diff\n(.*?)^```$", section)
    return found


@pytest.fixture
def project(tmp_path):
    """A copy of the project, with what a run makes left out."""
    ignore = shutil.ignore_patterns(*MADE, ".*_cache", ".models")
    return Path(shutil.copytree(store.ROOT, tmp_path / "project", ignore=ignore))


def environment(project, **more):
    """This environment, in which the copy's package is the one that is imported."""
    known = {"PYTHONPATH": project, "HF_HUB_OFFLINE": 1, "GIT_CEILING_DIRECTORIES": project.parent}
    return os.environ | {name: str(value) for name, value in (known | more).items()}


def run(project, *command, ok=True, **more):
    """Run a command in the copy; return what it printed."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=project,
        env=environment(project, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert (done.returncode == 0) == ok, done.stdout
    return done.stdout


def add(project, *examples):
    """Follow the page."""
    for example in examples:
        patch = project.parent / f"{example}.diff"
        patch.write_text(diff(example), encoding="utf-8")
        run(project, "git", "apply", patch)


def execute(project, stage, parameters, **more):
    """Run a stage of the copy; return the record of the run."""
    code = f"execution.execute({stage!r}, {parameters!r}, 'out.ipynb')"
    code = f"from seqcirc_utils.workflow import execution\n{code}"
    run(project, sys.executable, "-c", code, **more)
    (record,) = (project / "results").rglob(f"{stage}.run.json")
    return json.loads(record.read_text()), record.parent


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_short_and_in_style(project, example):
    changed = [line for line in diff(example).splitlines() if re.match(r"[+-](?!\+\+ |-- )", line)]
    most = {"stage": 65, "claim": 26}.get(example, 20)  # a claim is two rules
    assert 0 < len(changed) < most
    add(project, example)
    run(project, sys.executable, "-m", "ruff", "check", "--no-cache", ".")
    run(project, sys.executable, "-m", "ruff", "format", "--no-cache", "--check", ".")


def test_the_book_shows_the_examples():
    extend = (store.ROOT / "book" / "extend.md").read_text(encoding="utf-8")
    begin, end = re.findall(r"(?m)^:(?:start-after|end-before): (.*)$", extend)
    shown = PAGE.split(begin)[1].split(end)[0]
    assert re.findall(r"(?m)^## Add a (\w+)$", shown) == list(EXAMPLES)
    assert "](" not in shown  # a link that is right in one place would be wrong in the other


@pytest.mark.slow
@pytest.mark.model
def test_a_new_task_reaches_its_construction(project):
    fetching.fetch(zoo.DEFAULT)
    add(project, "task")
    record, where = execute(project, "01_task_construction", {"task": "roman_numerals"})
    assert record["model"]["name"] == zoo.DEFAULT and where.name == "roman_numerals"
    scores = json.loads((where / "01_task_construction.json").read_text())
    assert scores["accuracy"]["mean"] >= 0.5  # the page says that the model can do it


@pytest.mark.slow
def test_a_new_model_is_known_by_its_short_name(project, tmp_path, tokenizer):
    # The hub's local cache holds a tiny model under the new one's name.
    cached = tmp_path / "hub" / "models--openai-community--gpt2-medium"
    save_tiny("gpt2", cached / "snapshots" / "c0ffee", tokenizer)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("c0ffee")
    add(project, "model")
    asked = {"model": "gpt2-medium", "task": "months"}
    record, where = execute(project, "01_task_construction", asked, HF_HUB_CACHE=tmp_path / "hub")
    assert where == project / "results" / "default" / "gpt2-medium" / "months"
    facts = record["model"]
    assert (facts["title"], facts["revision"], facts["prepend"]) == ("GPT-2 Medium", "c0ffee", None)


@pytest.mark.slow
def test_a_new_stage_runs_and_has_a_page(project, tiny_directories):
    add(project, "stage")
    record, where = execute(project, "10_vocabulary", {"model": str(tiny_directories["gpt2"])})
    assert record["library"] and (where / "10_vocabulary.csv").read_text().count("\n") > 5
    code = (
        "from seqcirc_utils.publishing import building, pages\n"
        "from seqcirc_utils.workflow import planning\n"
        "plan = planning.read_plan('params/default.yml')\n"
        "print(plan.jobs()[-1].name, building._files(pages._committed_toc()))"
    )
    said = run(project, sys.executable, "-c", code)
    assert said.startswith("10_vocabulary ") and "'runs/10_vocabulary'" in said


@pytest.mark.slow
def test_a_new_task_has_prompts_and_a_new_claim_comes_out_both_ways(project):
    add(project, "task", "claim")
    wanted = "roman_numerals or C28 or is_complete or be_supported or is_falsified or limits_are"
    tests = ("tests/prompts/test_drawing.py", "tests/paper", "-k", wanted)
    said = run(project, sys.executable, "-m", "pytest", "-v", *tests)
    assert re.search(r"test_drawing\.py::\S*roman_numerals\S* PASSED", said)
    for name in (
        "test_what_is_published_is_complete",
        "test_every_claim_can_be_supported",
        "test_every_claim_is_falsified",
        "test_the_limits_are_those_set_before_the_results",
        "test_falsified_evidence_flips_the_verdict[C28-0]",
    ):
        assert re.search(rf"{re.escape(name)} PASSED", said)


@pytest.mark.slow
def test_hooks_stop_what_they_are_for_and_nothing_else(project):
    """All hooks pass on the project; each stops a fault of its own; none asks for anything."""
    (project / ".venv").symlink_to(sys.prefix)
    (project / ".git" / "info").mkdir(parents=True)
    (project / ".git" / "info" / "exclude").write_text("/.venv\n")

    def hooks(*names, ok):
        home = {"PRE_COMMIT_HOME": project.parent / "hooks", "https_proxy": "http://127.0.0.1:9"}
        run(project, "git", "add", "--all")
        command = (sys.executable, "-m", "pre_commit", "run", *names, "--all-files")
        return run(project, *command, ok=ok, **home)

    run(project, "git", "init", "--quiet")
    known = yaml.safe_load((project / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert hooks(ok=True).count("Passed") == len(known)
    notebook = project / "notebooks" / "01_task_construction.ipynb"
    bad = {
        "ruff-check": ("seqcirc_utils/bad.py", '"""A module."""\n\nimport os\n'),
        "ruff-format": ("notebooks/bad.ipynb", notebook.read_text().replace(" = ", "  =  ")),
        "pyrefly": ("seqcirc_utils/bad.py", '"""A module."""\n\nTWO: int = "2"\n'),
        "large-files": ("bad.csv", "1\n" * 2**21),
        "merge-conflict": ("book/bad.md", "<<<<<<< HEAD\none\n=======\ntwo\n>>>>>>> other\n"),
        "yaml": ("params/bad.yml", "model: [\n"),
        "json": ("seqcirc_utils/bad.json", "{,}\n"),
        "end-of-file": ("book/bad.md", "No newline"),
    }
    assert set(bad) == {hook["id"] for hook in known}
    for name, (path, text) in bad.items():
        (project / path).write_text(text)
        assert Path(path).name in hooks(name, ok=False), name
        (project / path).unlink()


def test_versions_agree():
    cited = yaml.safe_load((store.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (store.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    packaged = tomllib.loads((store.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    newest = re.findall(r"(?m)^## \[(\d+\.\d+\.\d+)\]", changes)[0]
    assert {cited["version"], newest, packaged["project"]["version"]} == {seqcirc_utils.__version__}
