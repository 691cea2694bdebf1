"""The benchmark's baseline finds what the fast search finds, or its ratio would mean nothing."""

import importlib.util
import json
from types import SimpleNamespace

import pytest
from stage_project import make, parameters, pretend

from seqcirc_utils import store
from seqcirc_utils.ablation.evaluator import Evaluator
from seqcirc_utils.ablation.replay import record
from seqcirc_utils.components import components
from seqcirc_utils.planted.circuits import PLANTED
from seqcirc_utils.prompts import drawing
from seqcirc_utils.publishing import discovery_size, tables
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


def test_circuits_are_searched_on_more_and_more_prompts(tmp_path, monkeypatch):
    module = loaded("discovery_size")
    plant = PLANTED["path"]
    model = plant.build("months")
    rows = list(module.searched(model, "months", [2, 3], judged=4))
    assert [(r["prompts"], r["part"]) for r in rows] == [(2, 0), (2, 1), (3, 0), (3, 1)]
    assert all(row["circuit"] == sorted(map(str, plant.smallest[0])) for row in rows)
    sets = drawing.prompt_sets(model, "months", n_prompts=4, n_means=module.N_MEANS, n_discovery=6)
    judge = Evaluator(model, sets.evaluation, record(model, sets.means).activations.mean())
    kept = judge.kept([plant.smallest[0]]).logit_diff.mean() / judge.intact.logit_diff.mean()
    assert rows[0]["mean"] == pytest.approx(kept.item(), abs=1e-5)
    assert rows[0]["low"] <= rows[0]["mean"] <= rows[0]["high"]
    monkeypatch.setattr(module.loading, "load", lambda *_: model)
    file = tmp_path / "benchmarks" / "discovery_size.json"
    asked = ["--tasks", "months", "--sizes", "3", "2", "--judged", "4", "--output", str(file)]
    module.main(asked)
    first = store.read_json(file)
    drawn = file.with_suffix(".svg").read_text()
    monkeypatch.setattr(module, "searched", None)  # begun again, it has nothing left to do
    module.main(asked)
    assert store.read_json(file) == first and file.with_suffix(".svg").read_text() == drawn
    for wrong in (["--tasks", "weeks"], ["--sizes", "1"], ["--judged", "1"]):
        with pytest.raises(SystemExit):
            module.main([*asked, *wrong])


def test_screened_effects_are_compared_with_exact_ones(tmp_path, monkeypatch):
    module = loaded("screening")
    plant = PLANTED["path"]
    model = plant.build("months")
    monkeypatch.setattr(module.loading, "load", lambda *_: model)
    file = tmp_path / "benchmarks" / "screening.json"
    asked = ["--tasks", "months", "--prompts", "5", "--exact", "3", "--output", str(file)]
    clock = iter([1.0, 3.0, 6.0])
    monkeypatch.setattr(module, "time", SimpleNamespace(process_time=lambda: next(clock)))
    module.main(asked)
    found = store.read_json(file)
    (row,) = found["rows"]
    everything = components(model)
    assert found["components"] == len(everything) > row["on_all"] >= len(plant.smallest[0])
    # What has no part in the answer is known to have none; the first prompts alone tell it too.
    assert row["largest"] < 1e-4 and row["rms"] <= row["largest"]
    assert (row["cpu_seconds"], row["cpu_seconds_exact"]) == (2, 3)
    monkeypatch.setattr(module, "MATTERS", 1)  # what was measured otherwise is measured anew
    monkeypatch.setattr(module, "compared", lambda *_: {"task": "months", "rms": 7})
    module.main([*asked, "--exact", "2"])
    assert store.read_json(file)["rows"] == [{"task": "months", "rms": 7}]
    for wrong in (["--tasks", "weeks"], ["--exact", "1"], ["--exact", "5"]):
        with pytest.raises(SystemExit):
            module.main([*asked, *wrong])


def test_the_page_on_discovery_prompts_is_made_of_the_file(tmp_path, monkeypatch):
    row = {"task": "a", "found_with": 0.8, "low": 0.7, "high": 0.9}
    rows = [
        row | {"prompts": n, "part": part, "circuit": c, "mean": m, "trials": 9, "cpu_seconds": 2.0}
        for n, part, c, m in (
            (4, 0, ["0.0", "0.1", "mlp0"], 0.6),
            (4, 1, ["0.1", "0.2"], 0.7),
            (8, 0, ["0.0", "0.1"], 0.8),
            (8, 1, ["0.0", "0.1"], 0.9),
        )
    ]
    table = discovery_size.by_size(rows).set_index("prompts")
    assert table["kept"].tolist() == pytest.approx([0.65, 0.85])
    assert table["parts"].tolist() == pytest.approx([1 / 4, 1])
    assert table["largest"].tolist() == pytest.approx([(2 / 3 + 1 / 3) / 2, 1])
    assert table["components"].tolist() == [2.5, 2] and discovery_size.jaccard([], []) == 1
    monkeypatch.setattr(store, "ROOT", tmp_path)
    assert "benchmarks/discovery_size.py" in discovery_size.discovery_size()
    file = tmp_path / discovery_size.DATA
    store.write_json(file, {"rows": rows, "judged": 64, "threshold": 0.8})
    page = discovery_size.discovery_size()
    assert "64 further prompts; 80% is asked" in page and "image" not in page
    assert "| 4 | 2 | 65.0% | 0.25 | 0.50 | 9 | 2 |" in page
    (tmp_path / discovery_size.FIGURE).write_text("<svg/>")
    assert "runs/discovery_size.svg" in discovery_size.discovery_size()
