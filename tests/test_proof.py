"""The proof tells right from refused, wrong and crashed, and the book shows what it wrote."""

import importlib.util
import sys

import pytest

from seqcirc_utils import store
from seqcirc_utils.errors import UserError
from seqcirc_utils.publishing.architectures import architectures

SCRIPTS = store.ROOT / "scripts"


@pytest.fixture(scope="module")
def proof():
    sys.path[:0] = [str(SCRIPTS)]
    spec = importlib.util.spec_from_file_location("proof", SCRIPTS / "proof.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fail(error):
    raise error


def test_a_cell_tells_the_worst_of_its_parts(proof):
    refused, wrong = UserError("it caps its logits"), AssertionError("1 is\nnot 2")
    parts = {"a": lambda: None, "b": lambda: fail(refused)}
    assert proof.verdict({"a": parts["a"]}) == {"verdict": "right", "why": {}}
    assert proof.verdict(parts) == {"verdict": "refused", "why": {"b": "it caps its logits"}}
    found = proof.verdict(parts | {"c": lambda: fail(wrong)})
    assert found["verdict"] == "wrong" and found["why"]["c"] == "1 is not 2"
    found = proof.verdict({"c": lambda: fail(wrong), "d": lambda: fail(KeyError("z"))})
    assert found["verdict"] == "crashed" and found["why"]["d"] == "KeyError: 'z'"


def test_another_models_logits_are_wrong(proof, tiny, tiny_directories, sets):
    tokens = sets.evaluation.tokens
    proof.same_logits(tiny_directories["llama"], tiny["llama"], tokens)
    with pytest.raises(AssertionError):
        proof.same_logits(tiny_directories["gpt2"], tiny["llama"], tokens)


def test_no_committed_cell_is_wrong_and_reasons_are_there():
    rows = store.read_json(store.ROOT / "benchmarks" / "architectures.json")["rows"]
    assert rows
    for name, row in rows.items():
        assert row["accuracy"] >= 0.9 and row["versions"]["torch"] and row["date"], name
        assert "whole run" in row["cells"], name
        for column, cell in row["cells"].items():
            assert cell["verdict"] in ("right", "refused"), (name, column, cell)
            assert bool(cell["why"]) == (cell["verdict"] == "refused"), (name, column)


def test_the_page_is_drawn_from_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROOT", tmp_path)
    assert "make proof" in architectures()
    cells = {"loads": {"verdict": "right", "why": {}}}
    cells["edges"] = {"verdict": "refused", "why": {"x": "it `caps`\nits logits"}}
    parts = {"10_methods: RelP": "no rule", "06_cross_task: edges": "none"}
    cells["whole run"] = {"verdict": "refused", "why": parts, "runs": 18}
    row = {"configuration": "AConfig", "cells": cells, "seconds": 7.4, "date": "2026-11-26"}
    broken = {"loads": {"verdict": "crashed", "why": {"loads": "KeyError: 1"}}}
    rows = {"a": row | {"versions": {"torch": "2"}, "accuracy": 1.0, "parameters": 12}}
    rows["b"] = row | {"versions": {"torch": "2"}, "cells": broken}
    store.write_json(tmp_path / "benchmarks" / "architectures.json", {"rows": rows})
    page = architectures()
    assert "| a | right | refused | right; 2 refused |" in page
    assert "| b | **crashed** | not tried | not tried |" in page
    assert "- a, edges, `x`: `it caps its logits`" in page
    assert "| a | `AConfig` | `12` | `100%` | `7` | `2026-11-26` | `torch 2` |" in page
