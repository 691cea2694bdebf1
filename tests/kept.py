"""What every chapter's test does with findings: give circuits to a chapter, save and load."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd

from seqcirc_utils.chapters.setting import Setting
from seqcirc_utils.errors import CannotDo


def setting(parameters, model, circuits):
    """A chapter's setting in which chapter 04 has found these circuits, and no others."""

    def read(kind, task):
        if task not in circuits:
            raise CannotDo("it cannot be done.")
        return SimpleNamespace(circuit=SimpleNamespace(components=circuits[task]))

    return Setting(parameters, read=read, model=model)


def kept_and_read(found, where, *, index=False, dtypes=False, nan=False):
    """Findings as they come back from their files, which say the same.

    ``index`` and ``dtypes`` of tables are held to it where a chapter keeps them; ``nan`` is equal
    to itself where arrays may hold it.
    """
    found.save(where)
    again = type(found).load(where)
    for field in dataclasses.fields(found):
        first, second = getattr(found, field.name), getattr(again, field.name)
        if isinstance(first, pd.DataFrame):
            first = first if index else first.reset_index(drop=True)
            pd.testing.assert_frame_equal(first, second, check_dtype=dtypes, rtol=1e-5)
        elif isinstance(first, np.ndarray):
            assert np.array_equal(first, second, equal_nan=nan), field.name
        else:
            assert first == second, field.name
    return again
