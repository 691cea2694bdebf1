"""Tables of notebooks, as the pages show them."""

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from seqcirc_utils import store
from seqcirc_utils.publishing import tables
from seqcirc_utils.publishing.tables import one_header_row

FRAME = pd.DataFrame({"kept": [1, 2], "cut": [3, 4]}, pd.Index(["a", "b"], name="edges"))
DEEP = FRAME.set_index("kept", append=True)


@pytest.mark.parametrize("made", [pd.DataFrame.to_html, lambda frame: frame.style.to_html()])
@pytest.mark.parametrize(
    "frame, names", [(FRAME, ["edges", "kept", "cut"]), (DEEP, ["edges", "kept", "cut"])]
)
def test_the_index_is_named_beside_the_columns(frame, names, made):
    html = made(frame)
    soup = BeautifulSoup(one_header_row(f"<p>before</p>{html}<p>after</p>"), "html.parser")
    (row,) = soup.thead.find_all("tr")
    assert [cell.get_text(strip=True) for cell in row.find_all("th")] == names
    before = BeautifulSoup(html, "html.parser")
    assert str(soup.tbody) == str(before.tbody)
    assert [p.text for p in soup.find_all("p")] == ["before", "after"]


@pytest.mark.parametrize(
    "frame",
    [
        FRAME.rename_axis(columns="rule"),  # both rows say something at one place
        FRAME.rename_axis(None),
        pd.concat({"x": FRAME, "y": FRAME}, axis=1),
        pd.DataFrame(np.eye(2)),
    ],
)
def test_other_headers_stay_as_they_are(frame):
    for html in (frame.to_html(), frame.style.to_html(), "<p>no table</p>"):
        assert one_header_row(html) == html


def test_the_paper_size_is_told_as_it_was_measured(tmp_path, monkeypatch):
    assert "| 04_circuit_discovery | `months` |" in tables.paper_size()  # the committed file
    monkeypatch.setattr(store, "ROOT", tmp_path)
    assert "paper_size.py" in tables.paper_size()
    row = {"stage": "03_patching", "task": "", "seconds": 7.6, "gpu_gb": None}
    about = {"n_prompts": 1536, "device": "A GPU", "date": "2026-11-27", "versions": {"torch": "2"}}
    store.write_json(tmp_path / "benchmarks" / "paper_size.json", about | {"rows": [row]})
    assert "A GPU, 1,536 prompts, 2026-11-27, torch 2:" in tables.paper_size()
    assert "| 03_patching | all | 8 |  |" in tables.paper_size().replace("`", "")


def test_errors_of_screening_are_told_as_they_were_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROOT", tmp_path)
    assert "screening.py" in tables.screening()
    row = {"task": "months", "on_all": 93, "largest": 0.0067, "rms": 0.00075, "rms_first": 0.0026}
    row |= {"rms_gradient": 0.01, "cpu_seconds": 240.4, "cpu_seconds_exact": 450.6}
    about = {"components": 300, "prompts": 32, "exact": 12}
    store.write_json(tmp_path / "benchmarks" / "screening.json", about | {"rows": [row]})
    told = tables.screening().replace("`", "")
    assert "300 components, 32 prompts, 12 of them for all components" in told
    assert "| months | 93 | 0.67% | 0.07% | 0.26% | 1.00% | 240 | 451 |" in told
