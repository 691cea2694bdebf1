"""The command line: strict parameters files, publishing, and what Snakemake runs again."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import nbformat
import pytest
import yaml
from stage_project import make, parameters, pretend, write_notebook

from seqcirc_utils import commands, store
from seqcirc_utils.errors import UserError
from seqcirc_utils.models import fetching, loading, zoo
from seqcirc_utils.publishing import pages, tables
from seqcirc_utils.workflow import execution, notebook, planning, records, snakemake, stages
from seqcirc_utils.workflow.parameters import check, declared

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


def pretend_all(plan):
    for job in plan.jobs():
        pretend(plan, job.stage, job.task)


def test_the_default_file_says_what_the_notebooks_say():
    plan = planning.read_plan(store.ROOT / "params" / "default.yml")
    assert plan.model == zoo.DEFAULT and plan.tasks == ("digits", "number_words", "months")
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
    plan = planning.read_plan(parameters(project, threshold=0.5, n_prompts=3))
    assert "threshold" in plan.parameters("03_patching", "months")
    assert "threshold" not in plan.parameters("04_circuit_discovery", "months")
    assert plan.parameters("06_cross_task")["tasks"] == ["months"]
    assert plan.directory("months") == project / "results/mine/gpt2/months"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"n_promts": 3}, "did you mean 'n_prompts'"),
        ({"n_prompts": 1}, "at least 2"),
        ({"tasks": ["moths"]}, "did you mean 'months'"),
        ({"tasks": []}, "is empty"),
        ({"model": "gpt3"}, "did you mean 'gpt2'"),
        ({"results": "elsewhere"}, "unknown parameter"),
        ({"task": "months"}, "unknown parameter"),
    ],
)
def test_bad_files_are_one_line_and_nothing_runs(project, capsys, values, said):
    file = parameters(project, **values)
    assert commands.main(["book", "--params", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not (project / "results").exists()


def test_a_token_that_the_model_lacks_is_refused_before_anything_runs(
    project, capsys, monkeypatch, tiny_directories
):
    monkeypatch.setattr(snakemake, "run", lambda *_: pytest.fail("it runs"))
    file = str(parameters(project, model=str(tiny_directories["gpt2"]), prepend="<eso>"))
    assert commands.main(["run", "--params", file]) == 2
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
    assert commands.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_a_file_that_is_no_mapping_or_no_yaml(project, capsys):
    for text in ("- a", "a: [", "", "\x00"):
        file = project / "params" / "odd.yml"
        file.write_text(text)
        assert commands.main(["publish", "--params", str(file)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_help_lists_parameters(project, capsys):
    with pytest.raises(SystemExit) as caught:
        commands.main(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "n_prompts: int = 8  evaluation prompts" in said and "06_cross_task (all tasks)" in said


def test_every_parameter_of_every_notebook_explains_itself():
    for stage in stages.STAGES:
        for parameter in declared(stage).values():
            assert parameter.help, (stage, parameter.name)


def test_publish(project):
    plan = planning.read_plan(parameters(project))
    pretend_all(plan)
    figure = plan.directory("months") / "figures" / "a.svg"
    store.write_text(figure, "<svg/>")
    store.write_text(plan.directory("months") / "03_patching.csv", "a\n1\n")
    record = planning.Job(plan, "03_patching", "months").record
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


def test_a_command_on_a_page_is_of_its_model_and_task(project):
    line = "papermill notebooks/03_patching.ipynb out.ipynb -p results results/try -p n_prompts 9"
    cell = nbformat.v4.new_markdown_cell(f"Try `papermill`:\n\n```bash\n{line}\n```")
    plan = planning.read_plan(parameters(project, tasks=["digits", "months"]))
    pretend_all(plan)
    found = {}
    for task in plan.tasks:
        pretend(plan, "03_patching", task, [cell])
    pages.publish(plan)
    for task in plan.tasks:
        text = (project / f"book/runs/{task}/03_patching.ipynb").read_text()
        (found[task],) = re.findall(r"papermill notebooks[^\\]*", text)
    assert found["months"] == line  # the notebook's own
    assert found["digits"] == line.replace("out.ipynb", "out.ipynb -r task digits")
    # Another model, whose name the shell would read otherwise.
    job = planning.Job(plan, "03_patching", "months")
    record = store.read_json(job.record)
    record["parameters"]["model"] = "my model"
    store.write_json(job.record, record)
    assert pages._of_this_run(line, job) == line.replace(
        "out.ipynb", "out.ipynb -r model 'my model'"
    )


def test_the_provenance_tells_where_the_discovery_took_its_time(project):
    plan = planning.read_plan(parameters(project))
    pretend_all(plan)
    assert "CPU seconds of the circuit" not in tables.provenance(plan)
    taken = {"cpu_seconds": {"published sweep": 12.5, "judging": 3.0}}
    store.write_json(plan.directory("months") / "04_circuit_discovery.json", taken)
    text = tables.provenance(plan)
    assert "## CPU seconds of the circuit discovery" in text and "| part | months |" in text
    assert "| published sweep | `12.5` |" in text


def test_the_costs_of_a_sweep_are_worked_out_from_those_of_one_job(project):
    plan = planning.read_plan(parameters(project))
    with pytest.raises(UserError, match="does not exist"):
        tables.costs(plan)
    for job in plan.jobs():
        store.write_json(job.record, {"skipped": "it cannot count"})
    assert "nothing was measured" in tables.costs(plan)
    taken = {
        "03_patching": (900, 3000),
        "04_circuit_discovery": (2700, 3500),
        "09_claims": (360, 9),
    }
    for stage, (seconds, memory) in taken.items():
        job = planning.Job(plan, stage, "months" if stage in planning.PER_TASK else None)
        told = {"seconds": seconds, "cpu_seconds": 10, "memory_mb": memory}
        store.write_json(job.record, told)
        store.write_text(job.record.with_name(f"{stage}.csv"), "x" * 10**6)
    text = tables.costs(plan)
    assert "| 04_circuit_discovery | `1` | `45.0` | `3.5` | `1.0` |" in text
    # 2000 of each at a quarter and three quarters of an hour; one of the last for all ten tasks.
    assert "| up to the circuits | `4,000` | `2,000` | `20.0` | `4.0` |" in text
    assert "| all | `4,200` | `2,200` | `22.0` | `4.2` |" in text


def test_a_page_drawn_again_keeps_what_its_stage_took(project):
    plan = planning.read_plan(parameters(project))
    job = pretend(plan, "03_patching", "months")
    store.write_json(job.record, store.read_json(job.record) | {"seconds": 900, "memory_mb": 3000})
    run = notebook.begin("03_patching", plan.parameters("03_patching", "months"))
    run.finish()
    taken = store.read_json(job.record)
    assert (taken["seconds"], taken["memory_mb"]) == (900, 3000)
    run = notebook.begin("03_patching", plan.parameters("03_patching", "months") | {"seed": 1})
    run.finish()
    taken = store.read_json(job.record)
    assert taken["seconds"] < 900 and 10 < taken["memory_mb"] < 10**5 and taken["memory_mb"] != 3000


def test_what_was_skipped_has_a_line_in_the_provenance(project):
    plan = planning.read_plan(parameters(project))
    pretend_all(plan)
    job = planning.Job(plan, "03_patching", "months")
    given = plan.parameters("03_patching", "months")
    records.write(job.stage, given, job.record.parent, {"skipped": "it cannot count"})
    assert re.search(r"\| 03_patching \| `months` \|  \|  \|", tables.provenance(plan))


def test_publish_with_the_committed_tasks_uses_the_committed_toc(project):
    plan = planning.read_plan(parameters(project, tasks=["digits", "months"]))
    pretend_all(plan)
    pages.publish(plan)
    assert not (project / "book/runs/_toc.yml").exists()


def test_publish_refuses_missing_and_failed_notebooks(project):
    plan = planning.read_plan(parameters(project))
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


ODD = """run #3 {x} {wildcards.where} $HOME `id` [1] 'q' "d" \\ %20 a=b&c: é ; *?!~"""
NAMES = [ODD, "0123", "1_0", "yes", "1e3", "null", "-x", "'q'", '"d"', "~", "#", "[a]", "{}", "a+b"]


@pytest.mark.parametrize("name", NAMES)
def test_what_snakemake_is_given_arrives_as_it_was(project, monkeypatch, name):
    from snakemake.cli import parse_config
    from snakemake_interface_executor_plugins.utils import format_cli_arg

    monkeypatch.setattr(planning, "read_plans", lambda *given: given)
    entry = planning.to_config(f"params/{name}.yml", name)
    job = format_cli_arg("--config", [entry]).replace('"', '\\"')  # as its plugin for SLURM does
    outer = subprocess.run(f'printf %s "{job}"', shell=True, text=True, capture_output=True)
    inner = subprocess.run(
        f"printf '%s\\n' {outer.stdout}", shell=True, text=True, capture_output=True, cwd=project
    )
    assert inner.stdout == f"--config\n{entry}\n"
    by_hand = [f"params_file=params/{name}.yml", f"model={name}"]
    for typed in [[entry]] + [by_hand] * (name != "#"):  # which Snakemake itself refuses
        assert planning.from_config(parse_config(typed), typed) == (f"params/{name}.yml", name)
    assert planning.from_config({}, []) == ("params/laptop.yml", "")


@pytest.mark.parametrize(
    ("config", "said"),
    [({"modle": "gpt2"}, "did you mean 'model'"), ({"model": 83}, "is 83: put it in quotes")],
)
def test_a_configuration_that_says_something_else_is_refused(config, said):
    with pytest.raises(UserError, match=said):
        planning.from_config(config, [])


@pytest.mark.parametrize("name", NAMES)
def test_make_hands_on_what_it_was_given(name):
    probe = "include Makefile\nprobe:\n\t@printf '%s\\n' $(RUN)\n"
    for given in ([f"MODEL={name}", f"PARAMS=a/{name}"], []):
        done = subprocess.run(
            ["make", "-f", "-", "probe", *given],
            input=probe,
            cwd=store.ROOT,
            env=os.environ | ({} if given else {"MODEL": name, "PARAMS": f"a/{name}"}),
            text=True,
            capture_output=True,
        )
        assert done.stdout == f"--params=a/{name}\n--model={name}\n", done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_job_is_asked_for_what_the_plan_says(project, monkeypatch, tiny_directories, name):
    model = f"m/{name}"  # from the root
    shutil.copytree(tiny_directories["gpt2"], project / model)
    file = shutil.move(parameters(project, model=model), project / "params" / f"{name}.yml")
    plan = planning.read_plan(file)
    job = planning.Job(plan, "03_patching", "months")
    asked = shlex.split(job.arguments)
    given = commands._parser().parse_args(["stage", *asked, "--output=x"])
    assert (given.params, given.model, given.task) == (str(file), model, "months")
    where = job.record.relative_to(project)
    assert re.fullmatch(r"[\w./-]+", str(where))
    if name not in ("~",):  # a bare name of a directory
        shutil.copytree(tiny_directories["gpt2"], project / name)
        bare = planning.Job(planning.read_plan(file, name), "03_patching", "months")
        given = commands._parser().parse_args(["stage", *shlex.split(bare.arguments), "--output=x"])
        assert given.model == name


def test_a_model_named_from_elsewhere_is_refused(project, capsys, monkeypatch, tiny_directories):
    """The stages run in the project's root, where the name may mean another model."""
    shutil.copytree(tiny_directories["gpt2"], project / "run")
    shutil.copytree(tiny_directories["gpt2"], project / "elsewhere" / "run")
    command = ["run", "--params", str(parameters(project)), "--model", "./run"]
    monkeypatch.setattr(snakemake, "run", lambda *_: None)
    monkeypatch.chdir(project)
    assert commands.main(command) == 0
    monkeypatch.chdir(project / "elsewhere")
    assert commands.main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"give its whole path, {project / 'elsewhere' / 'run'}" in error
    monkeypatch.chdir(project / "notebooks")  # where Jupyter runs a notebook
    assert check("03_patching", {"model": "./run"})["model"] == "./run"
    assert loading.resolve("run") == project / "run"


def test_results_of_files_with_names_alike_are_kept_apart(project):
    names = ["a b", "a-b", "a#b", "a{b", "..", ".", "-b"]
    found = [planning.Plan(project / f"{name}.yml", "gpt2", (), {}).results for name in names]
    assert len(set(found)) == len(found) and found[1] == "results/a-b"
    assert not {"results/..", "results/."} & set(found)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("model: 0123", "must be str, not int (83): put it in quotes"),
        ("model: yes", "must be str, not bool (True): put it in quotes"),
        ("model:", "must be str, not NoneType (None): put it in quotes"),
        ('model: "a\\nb"', "holds a line break"),
        ("models: [0123]", "must be str, not int (83): put it in quotes"),
        ("templates: [no]", "must be str, not False: put it in quotes"),
    ],
)
def test_a_name_that_yaml_reads_otherwise_is_told(project, capsys, line, said):
    file = project / "params" / "mine.yml"
    file.write_text(f"{line}\n")
    assert commands.main(["run", "--params", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


@pytest.mark.parametrize("given", [["--model", ""], ["--model="], ["--params= "]])
def test_an_empty_value_falls_back_to_nothing(project, capsys, given):
    assert commands.main(["run", *given]) == 2
    error = capsys.readouterr().err
    assert "holds nothing" in error and error.count("\n") == 1


def test_a_parameters_file_with_a_line_break_in_its_name_is_refused(project, capsys):
    file = parameters(project).rename(project / "params" / "a\nb.yml")
    assert commands.main(["run", "--params", str(file)]) == 2
    error = capsys.readouterr().err
    assert "line break" in error and error.count("\n") == 1


@pytest.mark.slow
def test_odd_names_pass_through_the_whole_run(project, tiny_directories):
    """From the command line through Snakemake, a shell and papermill to the kernel and back."""
    model = shutil.copytree(tiny_directories["gpt2"], project / ODD)
    shutil.copytree(model, project / "run")  # what ` #` would leave of it, were it a comment
    file = parameters(project).rename(project / "params" / f"{ODD}.yml")
    stage = "03_patching"
    work = 'from seqcirc_utils.models import loading\n\nprint(loading.load(model, "cpu").n_layers)'
    write_notebook(project, stage, work=work)
    command = ["run", "--params", str(file), "--model", str(model), "--until", stage]
    assert commands.main([*command, "--cores", "1"]) == 0
    (job,) = (j for j in planning.read_plan(file, str(model)).jobs() if j.stage == stage)
    record = store.read_json(job.record)
    assert record["parameters"]["model"] == str(model) and job.is_current()
    assert record["parameters"]["results"] == job.plan.results

    results = f"elsewhere/{ODD}"  # as a notebook run by hand may have it
    output = execution.execute(
        stage, {"model": str(model), "results": results}, project / "o.ipynb"
    )
    assert output.is_file()
    (record,) = (project / results).rglob("*.run.json")
    assert store.read_json(record)["parameters"]["results"] == results

    by_hand = [sys.executable, "-m", "snakemake", "-n", "--quiet", "host", "--cores", "1"]
    by_hand += ["--until", stage, "--config", f"params_file={file}"]
    for name, said in ((str(model), "total 0"), ("gpt3", "did you mean 'gpt2'")):
        done = subprocess.run(
            [*by_hand, f"model={name}"], cwd=project, text=True, capture_output=True
        )
        assert said in " ".join((done.stdout + done.stderr).split())


@pytest.mark.slow
def test_snakemake_runs_exactly_what_changed(project):
    file = parameters(project, n_prompts=3)
    environment = os.environ | {"PYTHONPATH": str(project)}

    def planned():
        plan = planning.read_plan(file)
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
    plan = planning.read_plan(file)
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
    plan = planning.read_plan(parameters(project, n_prompts=3))
    snakemake.run([plan], 1)
    record = json.loads(planning.Job(plan, "06_cross_task", None).record.read_text())
    assert record["inputs"] and record["parameters"]["n_prompts"] == 3
    assert all(job.notebook.is_file() for job in plan.jobs())


@pytest.mark.slow
def test_some_stages_are_run_with_those_they_need_and_no_others(project):
    plan = planning.read_plan(parameters(project))
    wanted = ["05_component_roles", "04_circuit_discovery"]  # one of them waits for the other
    snakemake.run([plan], 2, wanted)
    ran = {job.stage for job in plan.jobs() if job.is_current()}
    assert ran == {"03_patching", *wanted}


@pytest.mark.slow
def test_one_job_at_a_time_has_the_gpu(project):
    """On a GPU that is taken a job fails here."""
    work = "import pathlib, time\n\n_gpu = pathlib.Path('gpu')\n_gpu.touch(exist_ok=False)\n"
    work += "time.sleep(3)\n_gpu.unlink()"
    more = "device: str = 'cuda'  # where"
    write_notebook(project, "01_task_construction", work=work, more=more)
    plan = planning.read_plan(parameters(project, tasks=["months", "digits"]))
    snakemake.run([plan], 2, ["01_task_construction"])


@pytest.mark.slow
def test_notebooks_run_in_place(project, monkeypatch):
    monkeypatch.setattr(fetching, "fetch", lambda name: None)
    stage = "01_task_construction"
    monkeypatch.setattr(stages, "STAGES", {stage: stages.STAGES[stage]})
    commands.notebooks()
    text = (project / f"notebooks/{stage}.ipynb").read_text()
    assert '"execution_count": 1' in text
    assert "progress bar" not in text.split('"outputs"')[-1].split('"source"')[0]
    assert "iopub" not in text
