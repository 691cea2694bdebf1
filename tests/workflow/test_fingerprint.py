"""What outdates a stage's results, and what only its page."""

from pathlib import Path

import nbformat
import numpy as np
import pytest
from stage_project import make, parameters

from seqcirc_utils import store
from seqcirc_utils.chapters.patching import Patching
from seqcirc_utils.workflow import fingerprint, notebook, planning, records, stages

PACKAGE = Path(fingerprint.__file__).parents[1]
STAGE = "03_patching"
MEASURED = [name for name, stage in stages.STAGES.items() if (PACKAGE / stage.chapter).is_file()]
MACHINERY = {"figures", "answers", "workflow", "publishing"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    return make(tmp_path, monkeypatch, real=[STAGE])


@pytest.fixture
def runs(project, monkeypatch):
    """Run the stage in this process; tells how often it was measured."""
    measured = []
    tables = {n: Patching.empty(n) for n in ("effects", "positions", "exact", "paths")}
    facts = {"position_spearman": 0.5, "templates": "born 4", "missing": {}}
    arrays = dict.fromkeys(("ablation", "values", "patching"), np.eye(2))
    found = Patching(**tables, **arrays, **facts)
    monkeypatch.setattr(Patching, "measure", lambda at: measured.append(at.parameters) or found)
    plan = planning.read_plan(parameters(project, n_prompts=4))
    job = planning.Job(plan, STAGE, "months")

    def run():
        """How often it was measured, and whether a run was planned at all."""
        measured.clear()
        job.forget_if_stale()
        planned = not job.record.is_file()
        begun = notebook.begin(STAGE, plan.parameters(STAGE, "months"))
        assert begun.findings(Patching).position_spearman == found.position_spearman
        begun.finish()
        nbformat.write(nbformat.v4.new_notebook(), job.notebook)
        return len(measured), planned

    assert run() == (1, True) and run() == (0, False)
    return run


def touch(file):
    with file.open("a", encoding="utf-8") as text:
        text.write("# changed\n")


def test_a_colour_draws_a_page_anew_and_computes_nothing(project, runs):
    for file in ("figures/patching.py", "figures/style.py", "figures/common.py"):
        touch(project / "seqcirc_utils" / file)
        assert runs() == (0, True), file
        assert runs() == (0, False), file
    page = project / "notebooks" / f"{STAGE}.ipynb"
    book = nbformat.read(page, 4)
    book.cells.append(nbformat.v4.new_markdown_cell("Another sentence."))
    nbformat.write(book, page)
    assert runs() == (0, True)


def test_what_measures_is_measured_anew(project, runs):
    for file in ("chapters/patching.py", "ablation/paths.py", "statistics.py"):
        touch(project / "seqcirc_utils" / file)
        assert runs() == (1, True), file
        assert runs() == (0, False), file


def test_what_a_stage_does_not_use_leaves_it_alone(project, runs):
    for file in ("analyses/editing.py", "circuits/search.py", "paper/faults.py", "commands.py"):
        touch(project / "seqcirc_utils" / file)
        assert runs() == (0, False), file


def test_a_figure_outdates_no_stage_that_reads(project, runs):
    """A page that is drawn again has the same results: what was made of them still holds."""
    plan = planning.read_plan(project / "params" / "mine.yml")
    reader = planning.Job(plan, "04_circuit_discovery", "months")
    run = notebook.begin(reader.stage, plan.parameters(reader.stage, "months"))
    run.input(STAGE, "json")
    run.finish()
    assert reader.is_current()
    touch(project / "seqcirc_utils" / "figures" / "patching.py")
    assert runs() == (0, True) and reader.is_current()
    touch(project / "seqcirc_utils" / "ablation" / "paths.py")
    assert runs() == (1, True) and not reader.is_current()


def test_results_hold_while_their_page_is_drawn_and_not_while_they_are_measured(project, runs):
    """Another process may be reading them: it must not compute them once more."""
    plan = planning.read_plan(project / "params" / "mine.yml")
    job = planning.Job(plan, STAGE, "months")
    notebook.begin(STAGE, plan.parameters(STAGE, "months"))
    assert job.is_current()
    job.record.unlink()  # as Snakemake does before it runs a stage whose page is another
    assert runs() == (0, True)
    notebook.begin(STAGE, plan.parameters(STAGE, "months")).findings(Patching, anew=True)
    assert not job.is_current()
    assert runs() == (0, True)  # what was measured is whole, only not told


@pytest.mark.parametrize("stage", MEASURED)
def test_no_results_depend_on_figures_or_machinery(stage):
    own = {path.relative_to(PACKAGE).parts[0] for path in fingerprint.sources(stage)}
    assert "chapters" in own and not own & MACHINERY
    drawn = [path for path in fingerprint.drawing_sources(stage) if path.is_relative_to(PACKAGE)]
    assert "figures" in {path.relative_to(PACKAGE).parts[0] for path in drawn}


@pytest.mark.parametrize("stage", MEASURED)
def test_a_stage_depends_on_the_chapters_that_it_reads_and_no_others(stage):
    def module(name):
        return stages.STAGES[name].chapter

    there = {str(path.relative_to(PACKAGE)) for path in fingerprint.sources(stage)}
    used = {name for name in stages.STAGES if module(name) in there}
    assert used <= {stage, *stages.STAGES[stage].needs}


def test_the_record_holds_both_fingerprints(project, runs):
    (record,) = (project / "results").rglob(f"{STAGE}.run.json")
    told = store.read_json(record)
    assert told["library"] != told["drawing"] == fingerprint.drawing(STAGE)
    assert records.is_current(STAGE, record) and records.is_drawn(STAGE, record)
