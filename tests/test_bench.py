"""The benchmark's baseline finds what the fast search finds, or its ratio would mean nothing."""

import importlib.util
import json

import pytest

from seqcirc_utils import store
from seqcirc_utils.publishing import tables

FILE = store.ROOT / "benchmarks" / "bench.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_plain_and_fast_searches_agree(bench, tiny_directories, architecture):
    row = bench.searches(str(tiny_directories[architecture]), "months", 4, 3)
    assert row["same decisions"] and row["same circuit"]
    assert row["plain trials timed"] == 3 and row["plain / sweep"] > 0
    assert json.loads(json.dumps(row)) == row


def test_the_tables_of_the_book_come_from_the_file(bench, tiny_directories, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROOT", tmp_path)
    assert "make bench" in tables.benchmarks()
    row = bench.growth(str(tiny_directories["gpt2"]), "months", 2, 1)
    found = {"machine": {"cores": 2}, "versions": {"torch": "2"}, "threshold": 0.8}
    found |= {"searches": [], "growth": [row, row], "memory": []}
    store.write_json(tmp_path / "benchmarks" / "results.json", found)
    page = tables.benchmarks()
    assert "## Growth" in page and "## Searches" not in page
    assert f"| trials | `{row['trials']}` | `{row['trials']}` |" in page
    row |= {"sweep s": 1021.79, "ms a trial": 0.0123}
    store.write_json(tmp_path / "benchmarks" / "results.json", found)
    assert "`1022` | `1022`" in tables.benchmarks() and "`0.0123`" in tables.benchmarks()
