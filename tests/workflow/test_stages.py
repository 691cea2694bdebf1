"""Stages refuse bad parameters before any compute, and never leave half a result."""

import json
import re
import shlex
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from stage_project import make, write_notebook

from seqcirc_utils import store
from seqcirc_utils.errors import UserError
from seqcirc_utils.workflow import notebook, records, stages
from seqcirc_utils.workflow.execution import clean, execute
from seqcirc_utils.workflow.fingerprint import fingerprint, sources
from seqcirc_utils.workflow.parameters import Parameter, check, declared

GOOD = {"model": "gpt2", "task": "months", "n_prompts": 8}


@pytest.fixture
def project(tmp_path, monkeypatch):
    return make(tmp_path, monkeypatch)


def test_declares_what_the_notebook_says(project):
    found = declared("03_patching")
    assert found["n_prompts"] == Parameter("n_prompts", 8, int, "evaluation prompts")
    assert found["templates"].default == ["born"]
    assert found["paper_filter"].default is False


def test_fills_in_defaults_and_takes_whole_numbers_for_decimals(project):
    write_notebook(project, "08_prediction_and_editing", more="factors: list = [0.5]  # of edits")
    full = check("03_patching", {"n_prompts": 2, "threshold": 1})
    assert full["n_prompts"] == 2 and full["task"] == "months"
    assert full["threshold"] == 1.0 and isinstance(full["threshold"], float)
    factors = check("08_prediction_and_editing", {"factors": [0, 2.5]})["factors"]
    assert factors == [0.0, 2.5] and all(type(factor) is float for factor in factors)
    with pytest.raises(UserError, match="every item of factors must be float, not True"):
        check("08_prediction_and_editing", {"factors": [True]})


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"n_promts": 3}, "did you mean 'n_prompts'"),
        ({"n_prompts": True}, "must be int, not bool"),
        ({"n_prompts": "8"}, "at least 2"),
        ({"n_prompts": 8.0}, "must be int, not float"),
        ({"n_prompts": 0}, "at least 2"),
        ({"n_prompts": 1}, "at least 2"),  # no interval over prompts
        ({"seed": -1}, "at least 0"),
        ({"threshold": 0}, "above 0"),
        ({"threshold": 1.1}, "at most 1"),
        ({"threshold": float("nan")}, "at most 1"),
        ({"prepend": ""}, "allowed are auto, none, bos, or a token"),
        ({"prepend": None}, "not NoneType (None): put it in quotes"),
        ({"paper_filter": 1}, "must be bool"),
        ({"task": "month"}, "did you mean 'months'"),
        ({"task": ["months"]}, "must be str"),
        ({"templates": []}, "is empty"),
        ({"templates": ["born", "born"]}, "twice"),
        ({"templates": ["bron"]}, "did you mean 'born'"),
        ({"templates": [1]}, "must be str, not 1"),
        ({"templates": "born"}, "must be list"),
        ({"model": "gpt3"}, "did you mean 'gpt2'"),
        ({"model": "./nowhere"}, "does not exist"),
        ({"model": None}, "must be str"),
        ({"results": " "}, "results is empty"),
        ({"device": "gpu"}, "auto, cpu, cuda"),
    ],
)
def test_refuses(project, bad, said):
    with pytest.raises(UserError, match="03_patching") as caught:
        execute("03_patching", bad, project / "out.ipynb")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not list(project.glob("out*"))


@pytest.mark.parametrize("stage", sorted(stages.STAGES))
def test_every_stage_with_a_model_lets_one_choose_what_stands_in_front(stage):
    code = stages.notebook(stage).read_text(encoding="utf-8")
    loads = code.count("loading.load(")
    assert loads == code.count("loading.load(model, device, prepend=prepend)")
    loads = loads or ("run.findings(" in code and "device:" in code)
    # Without it, a stage would take results of other prompts for those that it asked for.
    needs = [stage, *stages.STAGES[stage].needs]
    assert ("prepend" in declared(stage)) == bool(loads or len(needs) > 1)
    if loads:
        one, other = (check(stage, {"prepend": p}) for p in ("auto", "none"))
        assert fingerprint(stage, one) != fingerprint(stage, other)


@pytest.mark.parametrize(
    ("stage", "bad", "said"),
    [
        ("11_interchange", {"layer_step": 0}, "at least 1"),
        ("11_interchange", {"layer_step": -3}, "at least 1"),
        ("11_interchange", {"das_rank": 0}, "at least 1"),
        ("11_interchange", {"das_epochs": -1}, "at least 0"),
        ("14_explore", {"swap_step": 0}, "at least 1"),
        ("14_explore", {"n_shown": 0}, "at least 1"),
        ("12_specificity", {"n_ranked": 1}, "at least 2"),
        ("15_metrics", {"n_held": 1}, "at least 2"),
        ("15_metrics", {"n_searched": -1}, "at least 0"),
        ("12_specificity", {"n_resampled": 19}, "at least 20"),
        ("12_specificity", {"share_ablated": 0.0}, "above 0 and below 1"),
        ("15_metrics", {"share_kept": 1.0}, "above 0 and below 1"),
        ("12_specificity", {"ranking": "random"}, "unknown ranking of 12_specificity 'random'"),
        ("12_specificity", {"more_templates": ["bron"]}, "did you mean 'born'"),
        ("08_prediction_and_editing", {"pool_templates": ["borne"]}, "did you mean 'born'"),
        ("08_prediction_and_editing", {"lengths": [2, 5]}, "from 1 to 4"),
        ("08_prediction_and_editing", {"factors": [1]}, "is no edit"),
        ("08_prediction_and_editing", {"factors": [0.0, -1.0]}, "is no edit"),
        ("08_prediction_and_editing", {"factors": [0.0, float("nan")]}, "is no edit"),
        ("15_metrics", {"threshold": 0.0}, "above 0 and at most 1"),
        ("07_generalisation", {"probes": ["plus_22"]}, "did you mean 'plus_2'"),
        ("07_generalisation", {"probes": ["all", "plus_2"]}, "all by itself, or names"),
        ("07_generalisation", {"compared": ["men"]}, "did you mean 'mean'"),
        ("13_across_models", {"compare": ["gpt3"]}, "did you mean 'gpt2'"),
    ],
)
def test_what_a_chapter_cannot_use_is_refused_before_it_begins(stage, bad, said):
    with pytest.raises(UserError, match=stage) as caught:
        check(stage, bad)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stage", "good"),
    [
        ("11_interchange", {"layer_step": 1, "das_epochs": 0}),
        ("15_metrics", {"n_searched": 0, "threshold": 1.0, "ranking": "RelP"}),
        ("12_specificity", {"n_specific_random": 0, "n_ranked": 2}),
        ("07_generalisation", {"probes": ["all"], "compared": ["mean", "zero"]}),
        ("08_prediction_and_editing", {"lengths": [1, 4], "factors": [0.0, 3.0]}),
        ("13_across_models", {"compare": ["gpt2"]}),
    ],
)
def test_what_a_chapter_can_use_is_not(stage, good):
    assert good.items() <= check(stage, good).items()


def test_refuses_bad_tasks_and_stages(project):
    for tasks in ([], ["months", "months"], ["moths"]):
        with pytest.raises(UserError, match="06_cross_task"):
            check("06_cross_task", {"tasks": tasks})
    with pytest.raises(UserError, match="did you mean '03_patching'"):
        check("3_patching", {})


def test_refuses_a_parameter_that_is_no_annotated_literal(project):
    for line in ("n_top = 3  # bare", "n_top: int = 1 + 2  # derived"):
        write_notebook(project, "03_patching", more=line)
        with pytest.raises(UserError, match="n_top .* annotated literal"):
            check("03_patching", {})


def test_refuses_a_notebook_that_cannot_be_read(project):
    path = write_notebook(project, "03_patching")
    book = nbformat.read(path, as_version=4)
    del book.metadata["kernelspec"]
    for text in (nbformat.writes(book), "{", "{}"):
        path.write_text(text)
        with pytest.raises(UserError, match="03_patching.* cannot be read"):
            declared("03_patching")


def test_begin_finds_names_that_nothing_declares(project):
    namespace = {name: p.default for name, p in declared("03_patching").items()}
    allowed = {"In": [], "Out": {}, "_1": 3, "records": records, "Path": Path, "exit": exit}
    run = notebook.begin("03_patching", namespace | allowed)
    assert run.directory == project / "results/default/gpt2/months"
    assert run.path("csv") == run.directory / "03_patching.csv"
    with pytest.raises(UserError, match="did you mean 'n_prompts'"):
        notebook.begin("03_patching", namespace | {"n_prompt": 3})
    with pytest.raises(UserError, match="at least 2"):
        notebook.begin("03_patching", namespace | {"n_prompts": 0})


def test_begin_passes_over_what_other_cells_left(project):
    """All cells run twice, and what was tried in between; parameters are still checked."""
    namespace = {name: p.default for name, p in declared("03_patching").items()}
    own = "\n".join(f"{name}: object = 0  # what it is" for name in namespace)
    begin, work = (
        "run = notebook.begin(stage, globals())",
        "found = run.findings(Kind)\nfor x in y: z = x",
    )
    left = namespace | {"found": object(), "x": 3, "seeds": [1], "n_prompt": 3}
    before = ["", own, begin, work, "n_prompt = 3", "%matplotlib inline"]
    assert (
        notebook.begin("03_patching", left | {"In": [*before, own, begin]}).parameters["seed"] == 0
    )
    injected = "# Parameters\nn_prompt = 3\n"
    for wrong in ([own, injected], [own + "\nn_prompt: int = 3"]):
        cells = [*before, *wrong, begin]
        with pytest.raises(UserError, match="did you mean 'n_prompts'"):
            notebook.begin("03_patching", left | {"In": cells})
        again = [*cells, own, begin]  # mended
        assert notebook.begin("03_patching", left | {"In": again})


def test_sources_follow_imports(project):
    names = [path.name for path in sources("03_patching")]
    assert names[0] == "03_patching.ipynb"
    assert {"stages.py", "store.py", "errors.py", "zoo.py"} <= set(names)
    assert not {"commands.py", "circuit.py"} & set(names)
    write_notebook(project, "03_patching", work="from seqcirc_utils import commands as _w")
    assert "commands.py" in [path.name for path in sources("03_patching")]


def test_fingerprint_sees_code_and_parameters_but_no_outputs(project):
    before = fingerprint("03_patching", GOOD)
    path = project / "notebooks/03_patching.ipynb"
    book = nbformat.read(path, 4)
    book.cells[3].outputs = [nbformat.v4.new_output("stream", text="1")]
    nbformat.write(book, path)
    assert fingerprint("03_patching", GOOD | {"results": "x"}) == before
    assert fingerprint("03_patching", GOOD | {"n_prompts": 9}) != before
    write_notebook(project, "03_patching", work="print(2)")
    assert fingerprint("03_patching", GOOD) != before


def test_a_record_tells_the_sources_that_a_run_began_with(project):
    """What is changed while it runs did not make its results."""
    write_notebook(project, "03_patching", work="print(1)")
    run = notebook.begin("03_patching", GOOD)
    began = fingerprint("03_patching", run.parameters)
    write_notebook(project, "03_patching", work="print(2)")
    record = run.finish()
    assert store.read_json(record)["library"] == began
    assert not records.is_current("03_patching", record)
    write_notebook(project, "03_patching", work="print(1)")
    assert records.is_current("03_patching", record)


@pytest.mark.slow
def test_a_run_writes_everything_and_remakes_what_is_stale(project):
    where = project / "results/default/gpt2/months"
    output, own = where / "04_circuit_discovery.ipynb", where / "04_circuit_discovery.run.json"
    execute("04_circuit_discovery", {"n_prompts": 3}, output, progress=False)
    upstream = where / "03_patching.run.json"
    made = json.loads(upstream.read_text())
    assert made["parameters"]["n_prompts"] == 3 and made["versions"]["torch"]
    assert (where / "03_patching.ipynb").is_file()
    text = output.read_text()
    assert '"stderr"' not in text and '"papermill"' not in text
    record = json.loads((where / "04_circuit_discovery.run.json").read_text())
    assert record["inputs"] == {"03_patching.run.json": made["library"]}
    assert records.is_current("04_circuit_discovery", own, {"n_prompts": 3})
    assert not records.is_current("04_circuit_discovery", own, {"n_prompts": 4})

    # Another upstream notebook makes both stale; asking for the input makes it again.
    write_notebook(project, "03_patching", work="print('new')")
    assert not records.is_current("04_circuit_discovery", own)
    run = notebook.Run("04_circuit_discovery", check("04_circuit_discovery", {"n_prompts": 3}))
    assert run.input("03_patching", "txt").read_text() == "3"
    again = json.loads(upstream.read_text())
    assert again["library"] != made["library"]
    assert not records.is_current("04_circuit_discovery", own)
    assert run.input("03_patching", "txt").is_file()
    assert json.loads(upstream.read_text()) == again
    with pytest.raises(UserError, match="makes no file"):
        run.input("03_patching", "csv")
    with pytest.raises(UserError, match="unknown input"):
        run.input("02_logit_attribution", "csv")


@pytest.mark.slow
def test_a_failed_run_leaves_no_output_but_says_why(project):
    work = "from seqcirc_utils.errors import UserError\n\nraise UserError('no such thing')"
    write_notebook(project, "03_patching", work=work)
    output = project / "out.ipynb"
    output.write_text("old")
    with pytest.raises(UserError, match="03_patching failed: no such thing") as caught:
        execute("03_patching", {}, output)
    assert str(project / "out.failed.ipynb") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in project.glob("*out*")) == ["out.failed.ipynb"]
    assert not list(project.glob(".out*"))


@pytest.mark.slow
def test_the_kernel_is_this_interpreter(project, monkeypatch, tmp_path):
    kernels = tmp_path / "jupyter" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "wrong", "language": "python"}
    (kernels / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    write_notebook(project, "03_patching", work="import sys\nprint(sys.executable)")
    output = execute("03_patching", {}, project / "out.ipynb")
    assert sys.executable in output.read_text()
    assert store.read_json(project / "results/default/gpt2/months/03_patching.run.json")


def test_what_is_remembered_of_a_notebook_follows_its_changes(project):
    """Declarations and sources are remembered, so that a sweep of thousands is planned quickly."""
    full = check("03_patching", {})
    before = fingerprint("03_patching", full)
    write_notebook(project, "03_patching", work="print('other')")
    assert fingerprint("03_patching", full) != before
    write_notebook(project, "03_patching", more="threshold: float = 0.7  # part to keep")
    assert check("03_patching", {})["threshold"] == 0.7


@pytest.mark.slow
def test_a_task_that_the_model_cannot_do_is_skipped_with_its_reason(project, capfd):
    cannot = 'from seqcirc_utils.errors import CannotDo\n\nraise CannotDo("it cannot count")'
    write_notebook(project, "03_patching", work=cannot)
    write_notebook(
        project,
        "06_cross_task",
        work="for _t in tasks:\n    try:\n        run.input('04_circuit_discovery', 'txt', _t)\n"
        "    except ValueError as error:\n        print(_t, type(error).__name__, error)",
    )
    where = project / "results/default/gpt2"
    output = execute(
        "06_cross_task", {"tasks": ["months"]}, where / "06_cross_task.ipynb", progress=False
    )
    assert "months CannotDo it cannot count" in output.read_text()
    for stage in ("03_patching", "04_circuit_discovery"):
        record = where / "months" / f"{stage}.run.json"
        assert records.skipped(record) == "it cannot count" and records.is_current(stage, record)
        page = nbformat.read(record.with_name(f"{stage}.ipynb"), as_version=4)
        assert "it cannot count" in page.cells[-1].source and page.cells[0].source.startswith(
            "Text"
        )
        assert not [o for cell in page.cells for o in cell.get("outputs", [])]
        assert not list(record.parent.glob("*.failed.ipynb"))
    upstream = store.read_json(where / "months/04_circuit_discovery.run.json")["inputs"]
    assert list(upstream) == ["03_patching.run.json"]
    capfd.readouterr()
    execute("06_cross_task", {"tasks": ["months"]}, output, progress=False)
    assert "running it first" not in capfd.readouterr().err
    write_notebook(project, "03_patching")  # now it can
    assert not records.is_current("04_circuit_discovery", record)


def test_what_differs_from_run_to_run_is_not_kept():
    outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="50%|#####     |"),
        nbformat.v4.new_output("stream", name="stdout", text="said"),
        nbformat.v4.new_output("execute_result", {"text/plain": "<Styler at 0x7f2b98d7bad0>"}),
    ]
    cell = nbformat.v4.new_code_cell("1", outputs=outputs, metadata={"papermill": {"duration": 1}})
    book = nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {}})
    kept = clean(book).cells[0]
    assert [output.get("text") or output["data"]["text/plain"] for output in kept.outputs] == [
        "said",
        "<Styler>",
    ]
    assert "papermill" not in book.metadata and "papermill" not in kept.metadata


@pytest.mark.parametrize("stage", stages.STAGES)
def test_what_a_chapter_says_to_try_can_be_run(stage):
    """The command runs the chapter's own notebook, with parameters that are known and others."""
    path = stages.notebook(stage)
    cells = nbformat.read(path, as_version=4).cells
    said = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    for line in re.findall(r"^papermill .*$", said, re.M):
        command = shlex.split(line)
        assert command[1:3] == [path.relative_to(store.ROOT).as_posix(), "out.ipynb"]
        options = list(zip(command[3::3], command[4::3], command[5::3], strict=False))
        given = {name: yaml.safe_load(value) for flag, name, value in options if flag == "-p"}
        given |= yaml.safe_load(command[command.index("-y") + 1]) if "-y" in command else {}
        assert given.pop("results") != declared(stage)["results"].default
        assert given and all(value != declared(stage)[n].default for n, value in given.items())
        check(stage, given)


@pytest.mark.parametrize("stage", stages.STAGES)
def test_nbval_compares_what_does_not_change_however_it_is_called(stage):
    """Plainly too: every cell says whether its output is compared."""
    cells = nbformat.read(stages.notebook(stage), as_version=4).cells
    tags = [cell.metadata.get("tags", []) for cell in cells if cell.cell_type == "code"]
    for own in tags:
        said = [tag for tag in own if tag.startswith("nbval-")]
        assert said in (["nbval-ignore-output"], ["nbval-check-output"])
