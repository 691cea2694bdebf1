"""What is written down about the environment agrees with itself and with what is installed."""

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from seqcirc_utils.commands import _parser

ROOT = Path(__file__).resolve().parent.parent
NAMED = [
    "torch",
    "transformer-lens",
    "jupyter-book",
    "matplotlib",
    "seaborn",
    "papermill",
    "nbval",
    "snakemake",
]


def pins() -> dict[str, Requirement]:
    """Read the lock: canonical name to the one line that pins it."""
    found: dict[str, Requirement] = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text:
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is pinned twice"
            found[name] = requirement
    return found


def pinned_version(requirement: Requirement) -> str:
    """Give the version of an exact pin, and fail on anything looser."""
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"{requirement} is no exact pin"
    assert "*" not in specifier.version, f"{requirement} is no exact pin"
    return specifier.version


def pyproject() -> dict:
    """Read pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def direct_dependencies() -> list[str]:
    """List what the package, its tests and its profiles ask for by name."""
    project = pyproject()["project"]
    return project["dependencies"] + sum(project["optional-dependencies"].values(), [])


def conda_environment() -> tuple[list[str], list[str]]:
    """Split environment.yml into what conda installs and what pip installs."""
    content = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [entry for entry in content["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict)]
    return conda, pip


def test_the_lock_pins_everything_exactly_and_for_every_machine():
    """No pin is a range, and none names a build that only some machines have."""
    for name, requirement in pins().items():
        assert Version(pinned_version(requirement)).local is None, name
        assert requirement.url is None, name


@pytest.mark.parametrize("dependency", direct_dependencies())
def test_the_lock_satisfies_the_package(dependency):
    """Each direct dependency is pinned everywhere, within the bounds of pyproject.toml."""
    asked = Requirement(dependency)
    pin = pins()[canonicalize_name(asked.name)]
    assert pin.marker is None
    assert asked.specifier, f"{asked.name} has no bound in pyproject.toml"
    assert asked.specifier.contains(pinned_version(pin), prereleases=True)


def test_conda_installs_the_lock_and_the_package():
    """conda brings Python and pip only, so that no version is written in a second place."""
    conda, pip = conda_environment()
    assert [re.split("[=<>]", entry)[0] for entry in conda] == ["python", "pip"]
    assert "-r requirements.lock" in pip
    assert "-e ." in pip


def test_conda_python_is_one_the_package_runs_on():
    """The Python that conda installs is allowed by pyproject.toml."""
    (python,) = [entry for entry in conda_environment()[0] if entry.startswith("python=")]
    asked = Requirement("python" + pyproject()["project"]["requires-python"]).specifier
    assert asked.contains(python.partition("=")[2] + ".0")


def test_conda_names_the_versions_of_the_lock():
    """The packages written out in environment.yml are the eight, at the versions of the lock."""
    _, pip = conda_environment()
    written = [Requirement(entry) for entry in pip if not entry.startswith("-")]
    assert sorted(r.name for r in written) == sorted(NAMED)
    for requirement in written:
        assert pinned_version(requirement) == pinned_version(pins()[requirement.name])


@pytest.mark.parametrize("name", NAMED)
def test_the_lock_is_what_is_installed(name):
    """The lock was in force for this run; which build of a version it was does not matter."""
    assert Version(version(name)).public == pinned_version(pins()[name])


def make_help() -> set[str]:
    """List the targets that `make help` shows."""
    assert shutil.which("make"), "make is needed"
    # A make that runs these tests must not pass its own flags on.
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    shown = subprocess.run(
        ["make", "help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return set(re.findall(r"^  ([a-z][a-z-]*) +\S", shown.stdout, flags=re.MULTILINE))


def documented_targets(text: str) -> set[str]:
    """Find the targets of the `make` commands in a Markdown text: in its code, not in its prose."""
    code, fenced = [], False
    for line in text.splitlines():
        if re.match(r" *(```|~~~)", line):
            fenced = not fenced
        else:
            code += [line] if fenced else re.findall(r"`([^`]+)`", line)
    targets = set()
    for line in code:
        for command in re.split(r"&&|\|\||[;|]", line):
            if not re.search(r"\bmake\b", command):
                continue
            words = shlex.split(command, comments=True)
            # A prompt sign and settings may stand before the command.
            while words and (words[0] == "$" or re.match(r"[A-Z_]+=", words[0])):
                words = words[1:]
            if words[:1] == ["make"]:
                targets.update(word for word in words[1:] if re.fullmatch(r"[a-z][a-z-]*", word))
    return targets


def test_documented_targets_are_found_in_code_only():
    """The reader of the README below sees commands, and no prose."""
    text = """We make sure of it. Run `make book MODEL="a b"` or `make`.

```bash
cd here && CORES=2 make -s lint test  # make tea
$ make serve PORT=9
```
and make no more."""
    assert documented_targets(text) == {"book", "lint", "test", "serve"}


def test_make_help_lists_what_the_readme_documents():
    """Each target that the README names exists and explains itself in `make help`."""
    documented = documented_targets((ROOT / "README.md").read_text(encoding="utf-8"))
    assert {"book", "test"} <= documented, "the README no longer says how to build and test"
    assert documented <= make_help()


def written() -> dict[str, str]:
    """What people read about the project, by file: pages, notebooks' text, settings."""
    files = [*ROOT.glob("*.md"), *ROOT.glob("book/*.md"), *ROOT.glob("*.yml"), ROOT / "Makefile"]
    files += [*ROOT.glob(".github/**/*.yml"), *ROOT.glob("scripts/*.*"), *ROOT.glob("notebooks/*")]
    texts = {}
    for file in sorted(files):
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        texts[str(file.relative_to(ROOT))] = text
    return texts


def test_files_that_are_written_of_exist():
    """By their path from the root; in CONTRIBUTING, from the package too."""
    asked = set()
    for name, text in written().items():
        text = re.sub(r"(?ms)^```diff$.*?^```$", "", text)  # what a reader would add
        for path in re.findall(r"(?:`|\s)((?:[a-z_]+/)+[a-z0-9_]+\.(?:py|json|ipynb|yml))\b", text):
            places = [ROOT / path] + [ROOT / "seqcirc_utils" / path] * (name == "CONTRIBUTING.md")
            if path != "params/mine.yml" and not path.startswith("runs/"):  # made by a reader
                assert any(p.is_file() for p in places), f"{name}: {path}"
                asked.add(path)
    assert len(asked) > 25


def test_commands_that_are_written_of_exist():
    commands = set(re.findall(r"\w+", re.findall(r"\{(.*)\}", _parser().format_usage())[0]))
    found = {
        (name, command)
        for name, text in written().items()
        for command in re.findall(r"-m (seqcirc_utils\S* [-\w]+)", text)
    }
    assert len(found) > 5
    for name, command in found:
        module, word = command.split()
        assert module == "seqcirc_utils" and word in commands | {"--help"}, f"{name}: {command}"


def test_the_package_lists_all_its_rooms():
    package = ROOT / "seqcirc_utils"
    said = re.findall(r"``(\w+)``", (package / "__init__.py").read_text(encoding="utf-8"))
    there = {
        p.stem for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()
    }
    assert sorted(said) == sorted(there - {"__init__", "__main__"})


def test_rooms_import_only_from_those_before_them():
    """No import runs back up, and a room's own file imports nothing."""
    order = ["models", "prompts", "ablation", "circuits", "methods", "planted", "analyses"]
    order += ["chapters", "paper", "figures", "answers", "workflow", "publishing"]
    package = ROOT / "seqcirc_utils"
    ground = ["errors", "store", "choices", "statistics", "components", "typography", "versions"]
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        used = set(re.findall(r"(?m)^\s*from seqcirc_utils\.(\w+)", text))
        used |= set(re.findall(r"(?m)^from seqcirc_utils import (\w+)", text))
        room = path.parent.name
        if path.name == "__init__.py":
            assert not used, path
        elif path.stem in ("commands", "__main__"):
            continue  # the top
        elif path.parent == package:
            assert not used & set(order), path
        else:
            late = order[order.index(room) + 1 :]
            late += ["workflow", "publishing"] if room in ("figures", "answers") else []
            late += ["figures", "answers"] if room == "workflow" else []
            assert not used & set(late), f"{path} imports from {sorted(used & set(late))}"
            assert used <= set(order) | set(ground), path


def test_other_places_install_what_make_setup_installs():
    """Binder reads a file of its own, and a development container calls make."""
    binder = ROOT / "binder"
    named = (binder / "requirements.txt").read_text().split()
    assert named[0] == "-r" and (binder / named[1]).resolve() == ROOT / "requirements.lock"
    python = (binder / "runtime.txt").read_text().strip().removeprefix("python-")
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert (
        container["image"] == f"python:{python}" and container["postCreateCommand"] == "make setup"
    )
    assert os.access(binder / "postBuild", os.X_OK)
