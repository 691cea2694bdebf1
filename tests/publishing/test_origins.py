"""The line below each figure: its files are those that its function reads, and it says no more."""

import json
import subprocess

import nbformat

from seqcirc_utils import store
from seqcirc_utils.publishing import origins
from seqcirc_utils.workflow import records
from seqcirc_utils.workflow.planning import Job, read_plan
from seqcirc_utils.workflow.stages import STAGES, notebook

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def figures():
    for stage in STAGES:
        for cell in nbformat.read(notebook(stage), as_version=4).cells:
            if cell.metadata.get("mystnb", {}).get("figure"):
                yield stage, cell


def test_every_figure_of_findings_names_the_files_that_it_shows():
    without = [cell.source for stage, cell in figures() if not origins.shown(stage, cell.source)]
    assert without == ["figures.anatomy()"]  # a drawing


def test_files_are_found_through_helpers_and_properties_of_the_findings():
    assert origins.shown("03_patching", "figures.path_map(found)") == ["03_patching.paths.csv"]
    found = origins.shown("11_interchange", "figures.pair_grid(found)")  # through _at_best
    assert found == ["11_interchange.json", "11_interchange.layers.csv"]
    assert "04_circuit_discovery.circuit.json" in origins.shown(
        "04_circuit_discovery", "figures.circuit_map(found)"
    )


def test_a_figure_says_its_data_cell_parameters_and_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROOT", tmp_path)
    (tmp_path / "mine.yml").write_text("tasks: [months]")
    monkeypatch.undo()
    job = Job(read_plan(tmp_path / "mine.yml"), "11_interchange", None)
    monkeypatch.setattr(type(job), "record", tmp_path / "11_interchange.run.json")
    cell = nbformat.v4.new_code_cell("figures.layer_curves(found)", id="curves")
    cell.metadata["mystnb"] = {"figure": {"caption": "A caption."}}
    data = [tmp_path / "11_interchange.layers.csv"]
    for commit, said in ((COMMIT + "+", "commit `0123456789ab+`"), ("", "no commit on record")):
        job.record.write_text(json.dumps({"commit": commit}))
        text = origins.line(job, cell, data)
        assert text.endswith(said)
        assert "{download}`11_interchange.layers.csv <data/11_interchange.layers.csv>`" in text
        assert "11_interchange.json" not in text  # this page does not offer it
        assert "cell `curves`" in text and "parameters-11-interchange-all" in text
    origins.note(job, [cell], data)
    assert cell.metadata["mystnb"]["figure"]["caption"] == f"A caption.\n\n{text}"


def test_the_commit_is_that_of_the_checkout_and_tells_of_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROOT", tmp_path)
    assert records.commit() == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-qm", "a"], check=True)
    clean = records.commit()
    assert len(clean) == 40
    (tmp_path / "a").write_text("2")
    assert records.commit() == f"{clean}+"
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(store, "ROOT", tmp_path / "copy")
    assert records.commit() == ""
