"""Links that run a notebook elsewhere: only where the project's repository is known."""

import json
import re

import pytest
import yaml

from seqcirc_utils import store
from seqcirc_utils.publishing import launch
from seqcirc_utils.workflow import stages
from seqcirc_utils.workflow.parameters import check


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Set what the configuration says of the repository."""
    (tmp_path / "notebooks").symlink_to(store.ROOT / "notebooks")
    monkeypatch.setattr(store, "ROOT", tmp_path)

    def told(**values):
        text = yaml.safe_dump({"repository": values})
        (tmp_path / "_config.yml").write_text(text, encoding="utf-8")

    return told


def test_the_project_as_it_is_has_no_address_and_no_links():
    assert launch.links("03_patching") == []


@pytest.mark.parametrize("url", ["", None, "https://example.org/a/b", "https://github.com/a"])
def test_no_links_without_a_repository_that_both_services_read(repository, url):
    repository(url=url, branch="main")
    assert launch.links("03_patching") == []


@pytest.mark.parametrize("url", ["https://github.com/a-b/c.d", "https://github.com/a-b/c.d.git/"])
def test_links_name_repository_branch_and_notebook(repository, url):
    repository(url=url.rstrip("/"), branch="a/b")
    (line,) = launch.links("03_patching")
    assert re.findall(r"\((https[^)]*)\)", line) == [
        "https://mybinder.org/v2/gh/a-b/c.d/a%2Fb?labpath=notebooks%2F03_patching.ipynb",
        "https://colab.research.google.com/github/a-b/c.d/blob/a%2Fb/binder/colab.ipynb",
        "https://github.com/a-b/c.d/blob/a%2Fb/notebooks/03_patching.ipynb",
    ]


def test_the_colab_notebook_runs_what_there_is():
    book = json.loads((store.ROOT / launch.COLAB).read_text(encoding="utf-8"))
    code = ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"]
    given: dict[str, str] = {}
    exec(code[0], given)
    assert given["NOTEBOOK"] in stages.STAGES
    values = dict(re.findall(r"-p (\w+) (\S+)", given["VALUES"]))
    check(given["NOTEBOOK"], {k: int(v) if v.isdigit() else v for k, v in values.items()})
    makefile = (store.ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)", "\n".join(code)):
        assert f"\n{target}:" in makefile
