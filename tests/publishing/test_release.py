"""A release is whole and told of itself; read back, it gives the same results or is refused."""

import hashlib
import json
import os
import shutil

import pytest
from stage_project import make, parameters, pretend

from seqcirc_utils import commands, store
from seqcirc_utils.errors import UserError
from seqcirc_utils.publishing import building, release
from seqcirc_utils.workflow import planning


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose runs and whose book are there."""
    real = store.ROOT
    root = make(tmp_path / "project", monkeypatch)
    for name in ("CITATION.cff", "LICENSE", "README.md", "_config.yml"):
        shutil.copy(real / name, root)
    for name in ("requirements.lock", "environment.yml", "pyproject.toml"):
        shutil.copy(real / name, root)
    store.write_text(root / "_build" / "html" / "index.html", "the book")
    return root


@pytest.fixture
def plan(project):
    plan = planning.read_plan(parameters(project))
    for job in plan.jobs():
        pretend(plan, job.stage, job.task)
    built(plan)
    return plan


def built(plan):
    """Take the book to be built from the plan's results."""
    store.write_json(building._results(), building._made_of(plan))


@pytest.fixture
def folder(plan, tmp_path):
    """A release, away from the project, whose own results are gone."""
    moved = shutil.move(release.write(plan), tmp_path / "kept")
    shutil.rmtree(store.ROOT / "results")
    return moved


def rename(file, **changes):
    store.write_json(file, store.read_json(file) | changes)


def test_a_release_holds_all_that_it_lists_and_lists_all_that_it_holds(folder):
    listed = dict(
        reversed(line.split("  ", 1)) for line in (folder / "SHA256SUMS").read_text().splitlines()
    )
    held = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    assert set(held) - {"SHA256SUMS"} == set(listed)
    for name, digest in listed.items():
        assert hashlib.sha256(held[name].read_bytes()).hexdigest() == digest
    assert held["site/index.html"].read_text() == "the book"
    assert {"params/mine.yml", "CITATION.cff", "environment/requirements.lock"} <= set(held)
    assert "results/mine/gpt2/months/04_circuit_discovery.run.json" in held
    assert "notebooks/04_circuit_discovery.ipynb" in held


def test_what_an_archive_reads_says_one_thing(folder):
    crate, code, deposit = (
        json.loads((folder / name).read_text())
        for name in ("ro-crate-metadata.json", "codemeta.json", ".zenodo.json")
    )
    graph = {entity["@id"]: entity for entity in crate["@graph"]}
    root = graph[graph["ro-crate-metadata.json"]["about"]["@id"]]
    assert root["name"] == code["name"] == deposit["title"]
    assert root["version"] == code["version"] == deposit["version"]
    for part in root["hasPart"]:
        assert (folder / part["@id"]).exists() and part["@id"] in graph
    assert root["license"]["@id"] == code["license"] and root["license"]["@id"] in graph
    assert deposit["related_identifiers"][0]["identifier"] == "arXiv:2311.04131"
    assert "codeRepository" not in code  # no address is known


def test_results_read_back_are_those_released_and_are_current(folder, plan):
    back = release.read(folder)
    assert (back.name, back.model, back.tasks) == (plan.name, plan.model, plan.tasks)
    assert all(job.is_current() for job in back.jobs())
    for name, path in release._files(folder / "results"):
        assert (store.ROOT / "results" / name).read_bytes() == path.read_bytes()
    release.read(folder)  # a second time: they are there, and the same


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda f: (f / "release.json").unlink(), "is no release: it has no release.json"),
        (lambda f: rename(f / "release.json", format=2), "has format 2, and this version reads 1"),
        (lambda f: (f / "SHA256SUMS").write_text("x"), "SHA256SUMS cannot be read"),
        (lambda f: (f / "params/mine.yml").write_text("{}"), "params/mine.yml has another SHA-256"),
        (lambda f: (f / "LICENSE").unlink(), "is not whole: LICENSE is missing"),
        (
            lambda f: store.write_text(f / "results/mine/new.csv", "1"),
            "new.csv is not in SHA256SUMS",
        ),
    ],
)
def test_a_damaged_release_is_refused_and_nothing_is_copied(folder, damage, said):
    damage(folder)
    with pytest.raises(UserError, match=said):
        release.read(folder)
    assert not (store.ROOT / "results").exists()


def summed(folder):
    """Make the list of sums anew: what is refused then is refused for another reason."""
    lines = [f"{store.sha256(path)}  {name}\n" for name, path in release._files(folder)]
    (folder / "SHA256SUMS").write_text("".join(lines))


def test_results_of_other_sources_parameters_or_stages_are_refused(folder, monkeypatch):
    record = folder / "results/mine/gpt2/months/03_patching.run.json"
    kept = store.read_json(record)
    for change, said in (
        ({"library": "x"}, "03_patching months is of other sources"),
        (
            {"library": "x", "versions": kept["versions"] | {"torch": "0.1+cpu"}},
            "of other versions .torch 0.1.cpu, here ",
        ),
        ({"parameters": kept["parameters"] | {"n_prompts": 9}}, "is of another n_prompts"),
    ):
        store.write_json(record, kept | change)
        summed(folder)
        with pytest.raises(UserError, match=f"made by version .* do not fit .*{said}"):
            release.read(folder)
        assert not (store.ROOT / "results" / "mine").exists()
    record.unlink()
    summed(folder)
    with pytest.raises(UserError, match="03_patching months is missing"):
        release.read(folder)


def test_other_results_in_their_place_are_kept(folder):
    own = store.write_text(store.ROOT / "results" / "mine" / "own.txt", "mine")
    with pytest.raises(UserError, match="results/mine holds other results: move them away"):
        release.read(folder)
    assert own.read_text() == "mine"


def test_without_a_book_or_with_old_results_nothing_is_released(plan):
    before = release.write(plan)
    record = plan.jobs()[0].record
    rename(record, library="x")
    with pytest.raises(UserError, match=r"results/mine cannot be released: run `make book`"):
        release.write(plan)
    assert (before / "SHA256SUMS").is_file()
    shutil.rmtree(store.ROOT / "_build" / "html")
    record.unlink()
    pretend(plan, plan.jobs()[0].stage, plan.jobs()[0].task)
    with pytest.raises(UserError, match="there is no book in _build/html"):
        release.write(plan)
    assert {p.name for p in (store.ROOT / "_build").iterdir()} == {"release", ".results.json"}


def test_the_book_of_other_results_is_not_released(plan, capsys):
    store.write_text(store.ROOT / "_build" / "book.pdf", "on paper")
    assert (release.write(plan) / "book.pdf").is_file() and not capsys.readouterr().err
    os.utime(store.ROOT / "_build" / "book.pdf", (1, 1))
    assert not (release.write(plan) / "book.pdf").exists()
    assert "book.pdf is older than the book" in capsys.readouterr().err
    text = plan.file.read_text() + "seed: 1\n"
    other = planning.read_plan(store.write_text(plan.file.with_name("other.yml"), text))
    for job in other.jobs():
        pretend(other, job.stage, job.task)
    built(other)  # of other parameters, last
    with pytest.raises(UserError, match="is of other results"):
        release.write(plan)
    built(plan)
    release.write(plan)
    rename(plan.jobs()[0].record, timestamp="later")  # run again since
    with pytest.raises(UserError, match="is of other results"):
        release.write(plan)


def test_a_release_has_its_own_parameters(capsys):
    given = ["book", "--results=somewhere", "--params=params/quick.yml"]
    assert commands.main(given) == 2
    assert "leave --params and --model out" in capsys.readouterr().err
