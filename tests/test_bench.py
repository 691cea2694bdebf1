"""The benchmark's baseline finds what the fast search finds, or its ratio would mean nothing."""

import importlib.util
import json

import pytest
from stage_project import make, parameters, pretend

from seqcirc_utils import store
from seqcirc_utils.publishing import tables
from seqcirc_utils.workflow.planning import read_plan

FOLDER = store.ROOT / "benchmarks"


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench():
    return loaded("bench")


def test_what_a_book_took_is_put_beside_what_was_known(tmp_path, monkeypatch, capsys):
    project = make(tmp_path, monkeypatch)
    module = loaded("costs")
    file = parameters(project, tasks=["months", "digits"], n_prompts=4)
    plan = read_plan(file)
    before = {"04_circuit_discovery": {"4": 50, "32": 90}, "09_claims": {"any": 7}}
    monkeypatch.setattr(module, "FILE", project / "benchmarks" / "costs.json")
    store.write_json(module.FILE, {"model": plan.model, "cpu_seconds": before})
    with pytest.raises(SystemExit):
        module.main(["--params", str(file)])
    assert "have no current results" in capsys.readouterr().err
    took = {("04_circuit_discovery", "months"): 100, ("04_circuit_discovery", "digits"): 50}
    for job in plan.jobs():
        pretend(plan, job.stage, job.task)
        seconds = took.get((job.stage, job.task), 14)
        kept = store.read_json(job.record) | {"cpu_seconds": seconds, "memory_mb": 2 * seconds}
        store.write_json(job.record, kept)
    module.main(["--params", str(file), "--write"])
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("04_circuit")]
    assert line.split()[1:] == ["75.0", "200", "50.0", "1.5"]
    written = store.read_json(module.FILE)
    assert written["cpu_seconds"]["04_circuit_discovery"] == {"4": 75, "32": 90}
    assert written["cpu_seconds"]["09_claims"] == {"any": 14}
    assert written["cpu_seconds"]["03_patching"] == {"4": 14}
    assert written["memory_mb"]["4"]["04_circuit_discovery"] == 200


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_plain_and_fast_searches_agree(bench, tiny_directories, architecture):
    row = bench.searches(str(tiny_directories[architecture]), "months", 4, 3)
    assert row["same decisions"] and row["same circuit"]
    assert row["plain trials timed"] == 3 and row["plain / sweep"] > 0
    assert json.loads(json.dumps(row)) == row


def test_the_tables_of_the_book_come_from_the_file(bench, tiny_directories, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROOT", tmp_path)
    assert "make bench" in tables.benchmarks()
    row = bench.growth(str(tiny_directories["gpt2"]), "months", 2, 1)
    found = {"machine": {"cores": 2}, "versions": {"torch": "2"}, "threshold": 0.8}
    found |= {"searches": [], "growth": [row, row], "memory": []}
    store.write_json(tmp_path / "benchmarks" / "results.json", found)
    page = tables.benchmarks()
    assert "## Growth" in page and "## Searches" not in page
    assert f"| trials | `{row['trials']}` | `{row['trials']}` |" in page
    row |= {"sweep s": 1021.79, "ms a trial": 0.0123}
    store.write_json(tmp_path / "benchmarks" / "results.json", found)
    assert "`1022` | `1022`" in tables.benchmarks() and "`0.0123`" in tables.benchmarks()
