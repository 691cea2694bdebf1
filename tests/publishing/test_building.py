"""Building the book, also by those who call jupyter-book themselves."""

import shutil
import subprocess
import sys

import pytest
import yaml

from seqcirc_utils import store

TOC = {"format": "jb-book", "root": "intro", "chapters": [{"file": "runs/01"}]}
BUILD = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]


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
