"""A figure of two forms in the built book: the narrow one for phones, the wide one for all else."""

import re
import shutil
import subprocess
import sys

import nbformat
import pytest
import yaml
from conftest import CHROMIUM

from seqcirc_utils import store

BUILD = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", "book"]
SVG = "image/svg+xml"


def svg(width, colour):
    """A picture of one colour, so many points wide."""
    return (
        f'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="{width}pt" '
        f'height="100pt" viewBox="0 0 {width} 100"><rect width="{width}" height="100" '
        f'fill="{colour}"/></svg>\n'
    )


def cell(name, *forms):
    """A cell that showed a figure with a caption; the second form is the narrow one."""
    metadata = {SVG: {"narrow": forms[1]}} if forms[1:] else {}
    shown = nbformat.v4.new_output(
        "execute_result", {SVG: forms[0], "text/plain": "<Figure>"}, metadata=metadata
    )
    options = {"image": {"alt": f"What {name} shows"}, "figure": {"caption": f"About {name}."}}
    return nbformat.v4.new_code_cell(name, outputs=[shown], id=name, metadata={"mystnb": options})


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A book of one notebook: a figure drawn by older code, one of two forms, a very wide one."""
    root = tmp_path_factory.mktemp("book")
    for part in ("_ext", "_static"):
        shutil.copytree(store.ROOT / "book" / part, root / "book" / part)
    shutil.copy(store.ROOT / "_config.yml", root)
    (root / "book" / "references.bib").touch()
    toc = {"format": "jb-book", "root": "intro", "chapters": [{"file": "runs/01"}]}
    (root / "book" / "_toc.yml").write_text(yaml.safe_dump(toc))
    (root / "book" / "intro.md").write_text("# Title\n")
    title = nbformat.v4.new_markdown_cell("# Chapter", id="title")
    table = nbformat.v4.new_output("execute_result", {"text/html": "<b>x</b>", "text/plain": "x"})
    cells = [
        cell("old", svg(600, "red")),
        nbformat.v4.new_code_cell("table", outputs=[table], id="table"),
        cell("new", svg(700, "green"), svg(250, "blue")),
        cell("long", svg(800, "navy"), svg(500, "teal")),
    ]
    page = root / "book" / "runs" / "01.ipynb"
    page.parent.mkdir()
    metadata = {"language_info": {"name": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[title, *cells], metadata=metadata), page)
    done = subprocess.run([*BUILD, "-W"], cwd=root, text=True, capture_output=True)
    assert not done.returncode, done.stdout + done.stderr
    command = [*BUILD, "-W", "--builder", "singlehtml"]
    done = subprocess.run(command, cwd=root, text=True, capture_output=True)
    assert not done.returncode, done.stdout + done.stderr
    return root / "_build"


@pytest.mark.slow
@pytest.mark.parametrize("page", ["html/runs/01.html", "singlehtml/intro.html"])
def test_no_figure_is_lost_and_each_is_one_picture(book, page):
    page = book / page
    figures = re.findall(r"(?s)<figure.*?</figure>", page.read_text())
    assert len(figures) == 3
    for figure, name, colours in zip(
        figures,
        ("old", "new", "long"),
        (["red"], ["blue", "green"], ["teal", "navy"]),
        strict=True,
    ):
        assert figure.count("<img") == 1  # and so one text for who cannot see
        assert f'alt="What {name} shows"' in figure and f"About {name}." in figure
        files = re.findall(r'(?:srcset|src)="([^"]+)"', figure)
        shown = [(page.parent / file).read_text() for file in files]
        assert [re.search(r'fill="(\w+)"', text)[1] for text in shown] == colours


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's package chromium")
def test_phones_get_the_narrow_form_and_screens_and_paper_the_wide_one(book, browser):
    shown = """async () => {
      const found = [...document.querySelectorAll("main figure img")];
      for (const image of found) { image.loading = "eager"; await image.decode(); }
      return Promise.all(found.map(async i => [
        i.naturalWidth * 3 / 4, i.clientWidth, i.closest("figure").scrollWidth]));
    }"""
    phone, screen = (
        browser.new_context(viewport={"width": width, "height": 900}) for width in (390, 1280)
    )
    page = phone.new_page()
    page.goto((book / "html" / "runs" / "01.html").as_uri())
    narrow = page.evaluate(shown)
    assert [round(width) for width, *_ in narrow] == [600, 250, 500]
    assert narrow[1][1] <= 342 and narrow[2][1] == round(500 * 4 / 3)  # in a box that scrolls
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator("main figure a:has(img)").nth(1).click()  # a tap opens the wide one
    assert round(page.evaluate("document.documentElement.width.baseVal.value")) == 933
    page.go_back()
    page.emulate_media(media="print")
    page.wait_for_timeout(300)
    assert [round(width) for width, *_ in page.evaluate(shown)] == [600, 700, 800]
    page = screen.new_page()
    page.goto((book / "html" / "runs" / "01.html").as_uri())
    assert [round(width) for width, *_ in page.evaluate(shown)] == [600, 700, 800]
    phone.close()
    screen.close()
