"""Several models' books side by side: one that fails takes none of the others with it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from stage_project import make, parameters

from seqcirc_utils import commands, store
from seqcirc_utils.errors import UserError
from seqcirc_utils.models import zoo
from seqcirc_utils.publishing import shelf
from seqcirc_utils.workflow import planning, stages
from seqcirc_utils.workflow.fingerprint import fingerprint
from seqcirc_utils.workflow.parameters import check

OTHER = "gemma3-270m"
STAGE = stages.ACROSS


@pytest.fixture
def project(tmp_path, monkeypatch):
    return make(tmp_path, monkeypatch, real=[STAGE])


@pytest.fixture
def plan(project):
    return planning.read_plan(parameters(project, model=zoo.DEFAULT, compare=[zoo.DEFAULT, OTHER]))


@pytest.fixture
def done(monkeypatch):
    """What was run and built, in order; models in ``broken`` fail."""
    did = SimpleNamespace(steps=[], broken=set())

    def run(one, cores, until, profile):
        did.steps.append(("run", one.model, tuple(until)))
        if one.model in did.broken:
            raise UserError("no memory & no time")

    def book(one, cores, profile):
        did.steps.append(("book", one.model))
        store.write_text(store.ROOT / "_build" / "html" / "index.html", f"book of {one.model}")

    monkeypatch.setattr(commands, "run", run)
    monkeypatch.setattr(commands, "book", book)
    return did


def test_every_model_is_run_before_any_is_compared(plan, done, capsys):
    page = commands.models(plan)
    assert [step[:2] for step in done.steps] == [
        *(("run", zoo.DEFAULT), ("run", OTHER)) * 2,  # the verdicts last
        *(("book", OTHER), ("book", zoo.DEFAULT)),
    ]
    first, *_, last = (set(step[2]) for step in done.steps[:4])
    assert last == {"09_claims"} and first | last | {STAGE} == set(stages.STAGES)
    assert not first & {"09_claims", STAGE}
    for model in (zoo.DEFAULT, OTHER):
        assert (page.parent / model / "index.html").read_text() == f"book of {model}"
    for model, title in ((zoo.DEFAULT, "SmolLM2-135M-Instruct"), (OTHER, "Gemma 3 270M")):
        assert f'<a href="{model}/index.html">{title}</a>' in page.read_text()
    assert "across models</a>" not in page.read_text()  # these books have no such chapter
    assert str(page) in capsys.readouterr().out


def test_the_page_before_the_books_leads_to_the_chapter_that_compares(plan, done):
    chapter = f"runs/{STAGE}.html"
    store.write_text(shelf._directory() / OTHER / chapter, "compared")
    store.write_text(shelf._directory() / OTHER / "index.html", "book")
    page = shelf.write([plan, replace(plan, model=OTHER)], {}).read_text()
    assert f'<a href="{OTHER}/{chapter}">Gemma 3 270M across models</a>' in page
    assert f"{zoo.DEFAULT}/runs" not in page and "SmolLM2-135M-Instruct: none" in page


def test_a_file_that_lists_no_models_compares_those_of_the_chapter(project, done):
    """As all files in params/ do."""
    commands.models(planning.read_plan(parameters(project, model=zoo.DEFAULT)))
    assert [step[1] for step in done.steps[:2]] == [zoo.DEFAULT, OTHER]


def test_a_model_that_fails_takes_no_other_with_it(plan, done):
    done.broken.add(OTHER)
    page = commands.models(plan).read_text()
    assert ("book", OTHER) not in done.steps and ("book", zoo.DEFAULT) in done.steps
    assert (
        "Gemma 3 270M: none: no memory &amp; no time" in page and f"{OTHER}/index.html" not in page
    )
    done.broken.clear()
    commands.models(plan)
    done.broken.add(OTHER)
    assert "of an earlier run; now: no memory" in commands.models(plan).read_text()
    done.broken.add(zoo.DEFAULT)
    with pytest.raises(UserError, match="no model's book was made: no memory"):
        commands.models(plan)


def test_a_second_book_replaces_the_first(plan, done):
    commands.models(plan)
    stale = shelf._directory() / OTHER / "old.html"
    stale.write_text("x")
    shelf.put(replace(plan, model=OTHER))
    assert not stale.exists() and (stale.parent / "index.html").is_file()


def test_results_of_the_papers_model_outdate_the_verdicts_beside_them(plan, done):
    def found(stage="09_claims"):
        return fingerprint(stage, check(stage, plan.parameters(stage)))

    def write(model, zoo, n):
        where = stages.directory(plan.results, model, "months") / "03_patching.run.json"
        store.write_json(where, {"files": {"a.csv": str(n)}, "model": {"zoo": zoo}})

    before, other = found(), found("06_cross_task")
    write(OTHER, "gemma3-270m", 1)
    write(zoo.DEFAULT, "gpt2", 1)  # its own are inputs
    assert found() == before
    write("gpt2", "gpt2", 1)
    first = found()
    write("gpt2", "gpt2", 2)
    assert len({before, first, found()}) == 3 and found("06_cross_task") == other


def test_the_results_of_other_models_outdate_the_comparison(plan):
    def found():
        return fingerprint(STAGE, check(STAGE, plan.parameters(STAGE)))

    nothing = found()
    record = stages.directory(plan.results, OTHER) / "09_claims.run.json"
    store.write_json(record, {"files": {"a.csv": "1"}, "timestamp": "then"})
    first = found()
    assert first != nothing and first == found()
    store.write_json(record, {"files": {"a.csv": "1"}, "timestamp": "now"})
    assert found() == first  # the same results, drawn again
    store.write_json(record, {"files": {"a.csv": "2"}})
    assert found() != first
    own = plan.directory() / "09_claims.run.json"
    before = found()
    store.write_json(own, {"files": {"a.csv": "3"}})
    assert found() == before  # they are inputs
    record.unlink()
    assert found() == nothing
