"""Building the book, also by those who call jupyter-book themselves."""

import re
import shutil
import subprocess
import sys

import nbformat
import pytest
import yaml

from seqcirc_utils import store
from seqcirc_utils.workflow import stages

TOC = {"format": "jb-book", "root": "intro", "chapters": [{"file": "runs/01"}]}
BUILD = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]


@pytest.mark.parametrize("stage", stages.STAGES)
def test_a_page_links_to_pages_that_stand_beside_it(stage):
    """A chapter with a page a task has none of its bare name; the build ends, after all runs."""
    cells = nbformat.read(stages.notebook(stage), as_version=4).cells
    text = "".join(cell.source for cell in cells if cell.cell_type == "markdown")
    per_task = stages.STAGES[stage].per_task
    for linked in re.findall(r"\]\((\w+)\.ipynb", text):
        assert stages.STAGES[linked].per_task <= per_task, linked


@pytest.mark.slow
def test_a_book_without_its_chapters_is_not_built(tmp_path):
    shutil.copytree(store.ROOT / "book" / "_ext", tmp_path / "book" / "_ext")
    shutil.copy(store.ROOT / "_config.yml", tmp_path)
    (tmp_path / "book" / "references.bib").touch()
    (tmp_path / "book" / "_toc.yml").write_text(yaml.safe_dump(TOC))
    (tmp_path / "book" / "intro.md").write_text("# Title\n")
    page = tmp_path / "book" / "runs" / "01.md"
    for where, book in ((tmp_path, "book"), (tmp_path / "book", ".")):
        done = subprocess.run([*BUILD, book], cwd=where, text=True, capture_output=True)
        assert done.returncode
        assert "the book lacks 1 of its pages (runs/01, …): run `make book`" in done.stderr
        assert not (tmp_path / "_build" / "html" / "intro.html").exists()
    page.parent.mkdir()
    page.write_text("# Chapter\n")
    done = subprocess.run([*BUILD, "book"], cwd=tmp_path, text=True, capture_output=True)
    assert not done.returncode, done.stderr
    assert (tmp_path / "_build" / "html" / "runs" / "01.html").is_file()
