"""The one door: what it does beside running stages, and that asking for names is quick."""

import json
import os
import subprocess
import sys

import pytest
import torch
from stage_project import make, parameters, write_notebook

from seqcirc_utils import commands, store
from seqcirc_utils.models import fetching, zoo
from seqcirc_utils.publishing import pdf
from seqcirc_utils.workflow import planning, snakemake

MODELS = ("torch", "transformers", "transformer_lens")


@pytest.fixture
def project(tmp_path, monkeypatch):
    return make(tmp_path, monkeypatch)


def said_by(command, tmp_path, without=(*MODELS, "pandas", "matplotlib"), **more):
    """Run Python where some modules cannot be imported; return what it printed."""
    for name in without:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} was imported')")
    path = os.pathsep.join(map(str, (tmp_path, store.ROOT)))
    done = subprocess.run(
        [sys.executable, *command],
        cwd=store.ROOT,
        env=os.environ | {"PYTHONPATH": path} | more,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "module",
    [
        *("commands", "components", "models.zoo", "models.fetching", "prompts.sequences"),
        *("workflow.planning", "workflow.parameters", "workflow.snakemake", "workflow.stages"),
    ],
)
def test_names_are_told_without_torch(module, tmp_path):
    assert said_by(["-c", f"import seqcirc_utils.{module}"], tmp_path) == ""


def test_a_plan_and_its_fingerprints_are_made_without_torch(tmp_path):
    code = "from seqcirc_utils.workflow.planning import read_plan\n"
    code += "print(len({job.fingerprint for job in read_plan('params/quick.yml').jobs()}))"
    plan = planning.read_plan(store.ROOT / "params" / "quick.yml")
    assert int(said_by(["-c", code], tmp_path)) == len(plan.jobs())


def test_help_and_list_need_no_torch(tmp_path):
    assert "09_claims (all tasks)" in said_by(["-m", "seqcirc_utils", "--help"], tmp_path)
    assert set(json.loads(said_by(["-m", "seqcirc_utils", "list"], tmp_path))) == set(zoo.ZOO)


@pytest.mark.slow
def test_the_snakefile_is_read_without_torch(tmp_path):
    """Where there is no GPU that it would have to ask torch about."""
    command = ["-m", "snakemake", "--dry-run", "--forceall", "--cores=1", "--config"]
    command += ["params_file=params/default.yml"]
    if snakemake.may_have_gpu():
        pytest.skip("a GPU may be here")
    said = said_by(command, tmp_path, MODELS, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert "09_claims" in said


def test_a_job_wants_a_gpu_where_one_is_named_or_found(project, monkeypatch, tmp_path):
    def wanted(device, drivers, found):
        monkeypatch.setattr(snakemake, "_DEV", drivers)
        monkeypatch.setattr(sys, "platform", "linux")
        for kind in zoo.GPUS:
            monkeypatch.setattr(getattr(torch, kind), "is_available", lambda: found)
        write_notebook(project, "01_task_construction", more=f"device: str = {device!r}  # where")
        plan = planning.read_plan(parameters(project))
        return snakemake.gpus(planning.Job(plan, "01_task_construction", "months"))

    none, some = tmp_path / "none", tmp_path / "some"
    none.mkdir()
    some.mkdir()
    (some / "nvidia0").touch()
    assert [wanted(d, none, True) for d in ("cpu", "cuda", "mps", "auto")] == [0, 1, 1, 0]
    assert (wanted("auto", some, True), wanted("auto", some, False)) == (1, 0)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(snakemake, "_DEV", none)
    assert snakemake.may_have_gpu()


def test_a_model_is_fetched_by_name(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(store, "ROOT", tmp_path)
    monkeypatch.setattr(fetching, "fetch", lambda name: zoo.resolve(name) and f"/kept/{name}")
    assert commands.main(["fetch", "gpt2"]) == 0
    assert capsys.readouterr().out == "gpt2 is ready in /kept/gpt2\n"
    assert commands.main(["fetch", "gpt3"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown model 'gpt3'")


def test_the_book_is_printed_where_one_says(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(store, "ROOT", tmp_path)
    assert commands.main(["pdf"]) == 2
    assert "there is no book yet" in capsys.readouterr().err
    monkeypatch.setattr(pdf, "write", lambda file: file)
    for arguments, file in (([], tmp_path / "_build" / "book.pdf"), (["own.pdf"], "own.pdf")):
        assert commands.main(["pdf", *arguments]) == 0
        assert capsys.readouterr().out == f"The book is in {file}\n"
