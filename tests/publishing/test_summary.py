"""A sweep: its plans, its one graph, and its summary of what is there."""

import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from stage_project import make, pretend, write_notebook

from seqcirc_utils import commands, store
from seqcirc_utils.circuits.circuit import Circuit
from seqcirc_utils.errors import UserError
from seqcirc_utils.models import fetching, zoo
from seqcirc_utils.publishing import summary
from seqcirc_utils.workflow import planning
from seqcirc_utils.workflow.planning import DISCOVERY, to_config

STAGE = DISCOVERY
LISTS = {"models": ["gpt2", zoo.DEFAULT], "tasks": ["digits", "months"], "seeds": [0, 7]}


@pytest.fixture
def project(tmp_path, monkeypatch):
    return make(tmp_path, monkeypatch)


def sweep_file(project, **values):
    file = project / "params" / "many.yml"
    file.write_text(yaml.safe_dump(LISTS | {"n_prompts": 3} | values))
    return file


def found(plan, task, heads):
    """Pretend that a plan's circuit of a task was found."""
    pretend(plan, "03_patching", task)
    job = pretend(plan, STAGE, task)
    record = store.read_json(job.record)
    record["model"] |= {"n_layers": 2, "n_heads": 4}
    store.write_json(job.record, record)
    scores = {"mean": 0.5 + len(heads) / 10, "low": 0.0, "high": 2.0}
    circuit = Circuit(plan.model, task, "x", "mean", 0.8, 3, plan.seed, heads, [1], scores)
    circuit.save(job.record.with_name(f"{job.stage}.circuit.json"))
    return job


def test_a_sweep_is_a_plan_for_each_model_and_seed(project):
    plans = planning.read_plans(sweep_file(project))
    assert [(p.model, p.seed) for p in plans] == [
        *(("gpt2", 0), ("gpt2", 7), (zoo.DEFAULT, 0), (zoo.DEFAULT, 7))
    ]
    assert plans[1].results == "results/many/seed7"
    assert plans[1].parameters(STAGE, "months")["seed"] == 7
    # Discovery and what it needs, for each task, and nothing else.
    assert [(j.stage, j.task) for j in plans[0].jobs()] == [
        *(("03_patching", "digits"), ("03_patching", "months")),
        *((STAGE, "digits"), (STAGE, "months")),
    ]
    assert len({j.record for p in plans for j in p.jobs()}) == 16
    assert [p.model for p in planning.read_plans(sweep_file(project), "gpt2")] == ["gpt2", "gpt2"]


def test_the_shipped_sweep_is_read():
    plans = planning.read_plans(store.ROOT / "params" / "sweep.yml")
    assert len(plans) == 3 and len(plans[0].jobs()) == 6
    for job in plans[-1].jobs():
        assert job.plan.parameters(job.stage, job.task)["seed"] == 2


def test_a_job_of_a_sweep_says_how_it_is_run_alone(project):
    """What a node is told is enough to find the same plan again."""
    file = sweep_file(project)
    job = planning.read_plans(file)[3].jobs()[-1]
    assert job.arguments == (
        f"{STAGE} --params={file} --model={zoo.DEFAULT} --task=months --seed=7"
    )
    assert planning.read_plan(file, zoo.DEFAULT, 7) == job.plan


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"seeds": []}, "seeds in"),
        ({"seeds": [1, 1]}, "no two things alike"),
        ({"seeds": 3}, "must be a list"),
        ({"seeds": [-1]}, "at least 0"),
        ({"seeds": ["a"]}, "must be int"),
        ({"models": ["gpt3"]}, "did you mean 'gpt2'"),
        ({"stages": ["04_circuit"]}, "did you mean '04_circuit_discovery'"),
        ({"seed": 1}, "`seed` has no place"),
        ({"model": "gpt2"}, "`model` has no place"),
        ({"n_promts": 1}, "did you mean 'n_prompts'"),
    ],
)
def test_a_bad_sweep_is_one_line_and_nothing_runs(project, capsys, values, said):
    assert commands.main(["sweep", "--params", str(sweep_file(project, **values))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not (project / "results").exists()


def test_sweeps_and_other_files_are_not_confused(project, capsys):
    sweep, single = str(sweep_file(project)), str(project / "params/single.yml")
    (project / "params/single.yml").write_text("model: gpt2\nseed: 3\n")
    for command, said in [
        (["book", "--params", sweep], "make sweep"),
        (["sweep", "--params", single], "is no sweep"),
        (["sweep", "--params", sweep, "--model", "own/other"], "unknown model"),
        (["stage", "03_patching", "--params", sweep, "--seed", "5", "--output", "x"], "no seed 5"),
    ]:
        assert commands.main(command) == 2
        assert said in capsys.readouterr().err


def test_the_summary_counts_what_is_there_and_names_what_is_missing(project):
    plans = planning.read_plans(sweep_file(project))
    first, second = plans[0], plans[1]
    found(first, "months", [[0, 0], [0, 1], [1, 0]])
    found(second, "months", [[0, 0], [1, 3]])
    found(first, "digits", [[0, 0]])
    page = summary.write(plans).read_text()
    table = pd.read_csv(project / "results/many/circuits.csv")
    assert len(table) == 8 and table["done"].sum() == 3
    rows = pd.read_csv(project / "results/many/summary.csv").set_index(["model", "task"])
    months = rows.loc["gpt2", "months"]
    assert (months["done"], months["heads"], months["heads_min"], months["heads_max"]) == (
        *(2, 2.5, 2, 3),
    )
    # With mlp1 in both: {0.0, 0.1, 1.0, mlp1} and {0.0, 1.3, mlp1} share two of five.
    assert months["overlap"] == pytest.approx(2 / 5)
    assert months["other_tasks"] == pytest.approx(2 / 4)  # seed 0: digits is {0.0, mlp1}
    assert months["in_all"] == 1 and months["in_all_expected"] == pytest.approx(3 * 2 / 8)
    assert pd.isna(rows.loc["gpt2", "digits"]["overlap"])
    assert "3 of 8 circuits are done" in page and "2.5 (2 to 3)" in page
    assert "- gpt2, digits: seeds 7\n" in page
    assert f"- {zoo.DEFAULT}, months: seeds 0, 7\n" in page


def test_a_task_that_a_model_cannot_do_is_missing_and_ends_nothing(project):
    plans = planning.read_plans(sweep_file(project))
    found(plans[0], "months", [[0, 0]])
    job = pretend(plans[0], STAGE, "digits")  # skipped: there is no circuit, or an older one
    store.write_json(job.record, store.read_json(job.record) | {"skipped": "it cannot count"})
    job.record.with_name(f"{STAGE}.circuit.json").write_text("{}")
    table, circuits = summary.circuits(plans)
    assert table["done"].sum() == 1 and list(circuits) == [("gpt2", "months", 0)]
    assert "- gpt2, digits: seeds 0, 7\n" in summary.write(plans).read_text()


def test_results_of_other_parameters_are_missing(project):
    plans = planning.read_plans(sweep_file(project))
    found(plans[0], "months", [[0, 0]])
    assert summary.circuits(plans)[0]["done"].sum() == 1
    plans = planning.read_plans(sweep_file(project, n_prompts=4))
    assert summary.circuits(plans)[0]["done"].sum() == 0


def test_a_sweep_is_one_graph_and_goes_on_where_it_was(project, monkeypatch, capsys):
    file = sweep_file(project)
    plans = planning.read_plans(file)
    done = found(plans[0], "months", [[0, 0]])
    found(plans[0], "digits", [[0, 0]])
    store.write_json(done.record, store.read_json(done.record) | {"library": "other"})
    asked = []

    def snakemake(command, **_):
        asked.append(command)
        return Popen(["false"])

    Popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", snakemake)
    monkeypatch.setattr(fetching, "fetch", lambda name: asked.append(name))
    assert commands.main(["sweep", "--params", str(file)]) == 2
    assert asked[:2] == ["gpt2", zoo.DEFAULT] and len(asked) == 3
    assert "--keep-going" in asked[2] and to_config("params/many.yml", "") in asked[2]
    assert any(part.startswith("mem_mb=") for part in asked[2])
    assert not done.record.is_file()  # made by other sources
    said = capsys.readouterr()
    assert "summary.md" in said.out and "not every stage ran" in said.err
    assert "1 of 8" in (project / "results/many/summary.md").read_text()


@pytest.mark.slow
def test_snakemake_runs_a_sweep(project, monkeypatch):
    """Two seeds and one failing model: what can be made is made, at its own seed."""
    monkeypatch.setattr(fetching, "fetch", lambda name: None)
    write_notebook(project, "03_patching", work='assert model == "gpt2", "no such weights"')
    file = sweep_file(project, tasks=["months"], seeds=[0, 1])
    with pytest.raises(UserError, match="not every stage"):
        commands.sweep(planning.read_plans(file), 2)
    good, bad = (
        project / "results/many/seed1/gpt2",
        project / f"results/many/seed1/{zoo.DEFAULT}",
    )
    assert store.read_json(good / f"months/{STAGE}.run.json")["seed"] == 1
    assert store.read_json(good / f"months/{STAGE}.run.json")["memory_mb"] > 10
    assert not list(bad.rglob("*.run.json"))
    assert (project / "results/many/summary.md").is_file()


def test_profiles_are_checked_before_anything_runs(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (project / "profiles/other").mkdir()
    config = project / "profiles/other/config.yaml"
    for text, said in [
        ("executor: slurm", "no sbatch"),
        ("executor: no-such", "pip install snakemake-executor-plugin-no-such"),
        ("executor: [", "cannot be read as YAML"),
        ("- executor", "cannot be read as YAML"),
        (None, "profiles/local, profiles/slurm"),
    ]:
        config.write_text(text) if text else config.unlink()
        file = str(sweep_file(project))
        assert commands.main(["sweep", "--params", file, "--profile", "profiles/other"]) == 2
        error = capsys.readouterr().err
        assert said in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (project / "results").exists()


@pytest.mark.slow
def test_the_profiles_are_what_snakemake_reads(project):
    """Snakemake knows each setting of both profiles (it refuses others)."""
    for name in ("local", "slurm"):
        command = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "all"]
        command += ["--workflow-profile", f"profiles/{name}", "--config"]
        command += [f"params_file={sweep_file(project)}"]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
