"""Files are written whole or not at all, hold no NaN and no pickles, and say so when damaged."""

import json

import numpy as np
import pandas as pd
import pytest

from seqcirc_utils import store
from seqcirc_utils.errors import UserError


def test_an_exception_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = store.write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError, match="halfway"), store.writing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        raise RuntimeError("halfway")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_write_replaces_the_file_makes_its_directory_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "model" / "task" / "a.txt"
    store.write_text(path, "old")
    store.write_text(path, "ü")
    assert path.read_text(encoding="utf-8") == "ü"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_json_takes_numpy_and_sets_and_comes_back(tmp_path):
    data = {"a": np.float32(0.5), "b": np.arange(2), "c": {3, 1}, "d": np.int64(7), "e": "×"}
    path = store.write_json(tmp_path / "a.json", data)
    assert store.read_json(path) == {"a": 0.5, "b": [0, 1], "c": [1, 3], "d": 7, "e": "×"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), np.float64("nan"), [np.nan]])
def test_json_refuses_what_json_has_no_word_for(tmp_path, bad):
    path = store.write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        store.write_json(path, {"x": bad})
    assert store.read_json(path) == {"x": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_json_refuses_objects(tmp_path):
    with pytest.raises(TypeError, match="object"):
        store.write_json(tmp_path / "a.json", {"x": object()})


@pytest.mark.parametrize("reader", [store.read_json, store.read_csv, store.read_npz])
def test_a_missing_file_names_the_remedy(tmp_path, reader):
    with pytest.raises(UserError, match="run the stage that makes it first"):
        reader(tmp_path / "none")


@pytest.mark.parametrize(
    ("reader", "content"),
    [
        (store.read_json, b'{"a": 1'),
        (store.read_json, b"\xff\xfe"),
        (store.read_csv, b""),
        (store.read_csv, b'a,b\n"1,2\n3'),
        (store.read_npz, b"no archive"),
        (store.read_npz, b"PK\x03\x04 cut short"),
        (store.read_npz, b""),
    ],
)
def test_a_damaged_file_is_a_user_error_with_its_name(tmp_path, reader, content):
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged cannot be read"):
        reader(path)


def test_npz_comes_back_and_pickles_are_refused(tmp_path):
    path = store.write_npz(tmp_path / "a.npz", {"x": np.eye(2, dtype=np.float32), "y": [1, 2]})
    back = store.read_npz(path)
    np.testing.assert_array_equal(back["x"], np.eye(2))
    assert back["x"].dtype == np.float32 and sorted(back) == ["x", "y"]
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="allow_pickle"):
        store.read_npz(path)


def test_component_names_stay_text_in_tables(tmp_path):
    frame = pd.DataFrame({"component": ["4.10", "4.1", "mlp4"], "head": [10, 1, None]})
    back = store.read_csv(store.write_csv(tmp_path / "a.csv", frame))
    assert back["component"].tolist() == ["4.10", "4.1", "mlp4"]
    assert back["head"].tolist()[:2] == [10, 1] and back["head"].isna().tolist()[2]
    assert json.loads(back["head"].iloc[:2].to_json()) == {"0": 10, "1": 1}
