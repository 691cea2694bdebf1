"""The command line: strict parameters files, publishing, and what Snakemake runs again."""

import json
import os
import subprocess
import sys

import nbformat
import pytest
import yaml
from stage_project import make, write_notebook

from seqcirc_utils import models, pages, runs, stages, store, workflow
from seqcirc_utils import plan as plans
from seqcirc_utils.errors import UserError
from seqcirc_utils.parameters import check, declared

TOC = {
    "format": "jb-book",
    "root": "intro",
    "parts": [
        {"caption": "Start", "chapters": [{"file": "method"}]},
        {"caption": "Digits", "chapters": [{"file": "runs/digits/03_patching"}]},
        {"caption": "Months", "chapters": [{"file": "runs/months/03_patching"}]},
        {"caption": "All", "chapters": [{"file": "runs/06_cross_task"}]},
    ],
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    root = make(tmp_path, monkeypatch)
    (root / "book/_toc.yml").write_text(yaml.safe_dump(TOC))
    return root


def parameters(project, **values):
    file = project / "params" / "mine.yml"
    file.write_text(yaml.safe_dump({"model": "gpt2", "tasks": ["months"]} | values))
    return file


def pretend(plan, stage, task=None, cells=()):
    """Write what a run of a stage would have left."""
    job = workflow.Job(plan, stage, task)
    cells = [nbformat.v4.new_markdown_cell("# Title\n\ntext"), *cells]
    job.notebook.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), job.notebook)
    run = runs.Run(stage, check(stage, plan.parameters(stage, task)))
    run.library = job.fingerprint
    run.finish(model={"name": "gpt2"})
    return job


def pretend_all(plan):
    for job in plan.jobs():
        pretend(plan, job.stage, job.task)


def test_the_default_file_says_what_the_notebooks_say():
    plan = workflow.read_plan(store.ROOT / "params" / "default.yml")
    assert plan.model == models.DEFAULT and plan.tasks == ("digits", "number_words", "months")
    for job in plan.jobs():
        given = plan.parameters(job.stage, job.task)
        known = declared(job.stage)
        for name in set(given) - {"task"}:
            assert given[name] == known[name].default, (job.stage, name)


@pytest.mark.parametrize("name", ["laptop", "quick", "default", "paper"])
def test_shipped_parameters_are_read(name):
    values = yaml.safe_load((store.ROOT / "params" / f"{name}.yml").read_text())
    assert set(values) >= {
        *("model", "tasks", "templates", "n_prompts", "n_means", "paper_filter", "seed")
    }


def test_a_stage_gets_what_it_declares(project):
    plan = workflow.read_plan(parameters(project, threshold=0.5, n_prompts=3))
    assert "threshold" in plan.parameters("03_patching", "months")
    assert "threshold" not in plan.parameters("04_circuit_discovery", "months")
    assert plan.parameters("06_cross_task")["tasks"] == ["months"]
    assert plan.directory("months") == project / "results/mine/gpt2/months"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"n_promts": 3}, "did you mean 'n_prompts'"),
        ({"n_prompts": 0}, "at least 1"),
        ({"tasks": ["moths"]}, "did you mean 'months'"),
        ({"tasks": []}, "is empty"),
        ({"model": "gpt3"}, "did you mean 'gpt2'"),
        ({"results": "elsewhere"}, "unknown parameter"),
        ({"task": "months"}, "unknown parameter"),
    ],
)
def test_bad_files_are_one_line_and_nothing_runs(project, capsys, values, said):
    file = parameters(project, **values)
    assert workflow.main(["book", "--params", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not (project / "results").exists()


def test_a_token_that_the_model_lacks_is_refused_before_anything_runs(
    project, capsys, monkeypatch, tiny_directories
):
    monkeypatch.setattr(workflow, "_run_snakemake", lambda *_: pytest.fail("it runs"))
    file = str(parameters(project, model=str(tiny_directories["gpt2"]), prepend="<eso>"))
    assert workflow.main(["run", "--params", file]) == 2
    error = capsys.readouterr().err
    assert "did you mean '<eos>'" in error and error.count("\n") == 1
    assert not (project / "results").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["book", "--params", "nowhere.yml"],
        ["book", "--cores", "0"],
        ["book", "--cores", "two"],
        ["book", "--model", "gpt3"],
        ["build"],
        [],
        ["stage", "03_patching", "--output", "x.ipynb"],
        ["stage", "06_cross_task", "--task", "months", "--output", "x.ipynb"],
        ["stage", "99_more", "--output", "x.ipynb"],
    ],
)
def test_bad_commands_are_one_line(project, capsys, arguments):
    assert workflow.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_a_file_that_is_no_mapping_or_no_yaml(project, capsys):
    for text in ("- a", "a: [", "", "\x00"):
        file = project / "params" / "odd.yml"
        file.write_text(text)
        assert workflow.main(["publish", "--params", str(file)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_help_lists_parameters(project, capsys):
    with pytest.raises(SystemExit) as caught:
        workflow.main(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "n_prompts: int = 8  evaluation prompts" in said and "06_cross_task (all tasks)" in said


def test_every_parameter_of_every_notebook_explains_itself():
    for stage in stages.STAGES:
        for parameter in declared(stage).values():
            assert parameter.help, (stage, parameter.name)


def test_publish(project):
    plan = workflow.read_plan(parameters(project))
    pretend_all(plan)
    figure = plan.directory("months") / "figures" / "a.svg"
    store.write_text(figure, "<svg/>")
    store.write_text(plan.directory("months") / "03_patching.csv", "a\n1\n")
    record = workflow.Job(plan, "03_patching", "months").record
    store.write_json(record, store.read_json(record) | {"files": {"03_patching.csv": ""}})
    stale = project / "book/runs/digits/03_patching.ipynb"
    store.write_text(stale, "old")
    pages.publish(plan)
    runs = project / "book/runs"
    assert not stale.parent.exists()
    page = (runs / "months/03_patching.ipynb").read_text()
    assert "# Months: Title" in page and "data/03_patching.csv" in page and "| n_prompts |" in page
    assert (runs / "months/data/03_patching.csv").read_text() == "a\n1\n"
    assert not list(runs.rglob("data/*.run.json"))
    assert "# Title" in (runs / "06_cross_task.ipynb").read_text()
    assert (runs / "figures/months/a.svg").is_file()
    assert (runs / "provenance.md").read_text().startswith("# Provenance\n")
    toc = yaml.safe_load((runs / "_toc.yml").read_text())
    assert [part["caption"] for part in toc["parts"]] == ["Start", "Months", "All"]
    assert toc["parts"][1]["chapters"] == [{"file": "runs/months/03_patching"}]
    times = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    pages.publish(plan)
    assert times == {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}


def test_the_provenance_tells_where_the_discovery_took_its_time(project):
    plan = workflow.read_plan(parameters(project))
    pretend_all(plan)
    assert "CPU seconds of the circuit" not in pages.provenance(plan)
    taken = {"cpu_seconds": {"published sweep": 12.5, "judging": 3.0}}
    store.write_json(plan.directory("months") / "04_circuit_discovery.json", taken)
    text = pages.provenance(plan)
    assert "## CPU seconds of the circuit discovery" in text and "| part | months |" in text
    assert "| published sweep | `12.5` |" in text


def test_the_costs_of_a_sweep_are_worked_out_from_those_of_one_job(project):
    plan = workflow.read_plan(parameters(project))
    assert "nothing was measured" in pages.costs(plan)
    head = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
    taken = {
        "03_patching": (900, 3000),
        "04_circuit_discovery": (2700, 3500),
        "09_claims": (360, 9),
    }
    for stage, (seconds, memory) in taken.items():
        job = workflow.Job(plan, stage, "months" if stage in plans.PER_TASK else None)
        row = f"{seconds}\t-\t{memory}\t-\t-\t-\t-\t-\t-\t10\n"
        store.write_text(job.record.with_name(f"{stage}.cost.tsv"), head + row)
        store.write_text(job.record.with_name(f"{stage}.csv"), "x" * 10**6)
    text = pages.costs(plan)
    assert "| 04_circuit_discovery | `1` | `45.0` | `3.5` | `1.0` |" in text
    # 2000 of each at a quarter and three quarters of an hour; one of the last for all ten tasks.
    assert "| up to the circuits | `4,000` | `2,000` | `20.0` | `4.0` |" in text
    assert "| all | `4,200` | `2,200` | `22.0` | `4.2` |" in text


def test_publish_with_the_committed_tasks_uses_the_committed_toc(project):
    plan = workflow.read_plan(parameters(project, tasks=["digits", "months"]))
    pretend_all(plan)
    pages.publish(plan)
    assert not (project / "book/runs/_toc.yml").exists()


def test_publish_refuses_missing_and_failed_notebooks(project):
    plan = workflow.read_plan(parameters(project))
    with pytest.raises(UserError, match="does not exist"):
        pages.publish(plan)
    pretend_all(plan)
    cell = nbformat.v4.new_code_cell("1/0")
    cell.outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
    pretend(plan, "03_patching", "months", [cell])
    with pytest.raises(UserError, match="holds an error"):
        pages.publish(plan)
    assert not (project / "book/runs").exists()


def test_terms_are_linked_once_and_not_in_code_headings_or_links():
    terms = ["mean ablation", "ablation", "logit", "head"]
    left = list(terms)
    text = "# A head\n\n`head` [logit](x.md), *Mean\nablation* of heads by ablation, {cite}`head`."
    linked = pages._link_terms(text, terms, left)
    assert linked == (
        "# A head\n\n`head` [logit](x.md), *{term}`Mean\nablation <mean ablation>`* of "
        "{term}`heads <head>` by {term}`ablation <ablation>`, {cite}`head`."
    )
    assert left == ["logit"]
    text = "More heads, more mean ablation."  # the second time, nor a part of it
    assert pages._link_terms(text, terms, ["ablation"]) == text


def test_code_that_shows_nothing_is_folded_with_what_follows():
    code, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    shown = code("c", outputs=[nbformat.v4.new_output("stream", text="x")])
    last = code("e", metadata={"tags": ["remove-input"]})
    cells = pages._joined([code("a"), code("b"), shown, text("t"), code("d"), last])
    assert [cell.source for cell in cells] == ["a\n\nb\n\nc", "t", "d", "e"]


def test_the_glossary_is_read():
    assert {"faithfulness", "mean ablation", "two-sided"} <= set(pages._terms())


@pytest.mark.slow
def test_snakemake_runs_exactly_what_changed(project):
    file = parameters(project, n_prompts=3)
    environment = os.environ | {"PYTHONPATH": str(project)}

    def planned():
        plan = workflow.read_plan(file)
        for job in plan.jobs():
            job.forget_if_stale()
        command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "host", "--cores", "1"]
        command += ["--rerun-triggers", "mtime", "params", "input", "--config"]
        command += [f"params_file={file}"]
        done = subprocess.run(command, cwd=project, env=environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        said = done.stdout + done.stderr
        return {stage for stage in stages.STAGES if f"{stage}, " in said}

    def downstream(stage):
        found = {stage}
        for name, other in stages.STAGES.items():  # upstream first
            found |= {name} if found & set(other.needs) else set()
        return found

    assert downstream("05_component_roles") < downstream("03_patching") < set(stages.STAGES)
    assert planned() == set(stages.STAGES)
    plan = workflow.read_plan(file)
    pretend_all(plan)
    assert planned() == set()
    file.touch()
    for path in plan.directory().rglob("*.run.json"):  # a clock that went wrong, then right again
        os.utime(path, (year := 946684800 if "patching" in path.name else 2208988800, year))
    assert planned() == set()
    write_notebook(project, "02_logit_attribution", work="print('other')")
    assert planned() == downstream("02_logit_attribution")
    pretend_all(plan)
    parameters(project, n_prompts=3, threshold=0.5)  # only 03 declares it
    assert planned() == downstream("03_patching")


@pytest.mark.slow
def test_snakemake_runs_the_stages(project):
    plan = workflow.read_plan(parameters(project, n_prompts=3))
    workflow._run_snakemake([plan], 1)
    record = json.loads(workflow.Job(plan, "06_cross_task", None).record.read_text())
    assert record["inputs"] and record["parameters"]["n_prompts"] == 3
    assert all(job.notebook.is_file() for job in plan.jobs())


@pytest.mark.slow
def test_notebooks_run_in_place(project, monkeypatch):
    monkeypatch.setattr(workflow.models, "fetch", lambda name: None)
    stage = "01_task_construction"
    monkeypatch.setattr(stages, "STAGES", {stage: stages.STAGES[stage]})
    workflow.notebooks()
    text = (project / f"notebooks/{stage}.ipynb").read_text()
    assert '"execution_count": 1' in text
    assert "progress bar" not in text.split('"outputs"')[-1].split('"source"')[0]
    assert "iopub" not in text
