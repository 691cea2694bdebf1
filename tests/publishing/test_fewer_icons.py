"""Of the theme's icons the book loads those that it shows."""

import importlib.util
from pathlib import Path

import pydata_sphinx_theme
import pytest
from sphinx.errors import ExtensionError

from seqcirc_utils import store

SCRIPT = Path(pydata_sphinx_theme.__file__).parent / "theme" / "pydata_sphinx_theme" / "static"
SCRIPT = (SCRIPT / "scripts" / "fontawesome.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def icons():
    file = store.ROOT / "book" / "_ext" / "fewer_icons.py"
    spec = importlib.util.spec_from_file_location("fewer_icons", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names(icons, script):
    return {found["name"].strip('"') for found in icons._ICON.finditer(script)}


def test_used_icons_stay_under_each_of_their_names(icons):
    assert len(names(icons, SCRIPT)) > 1500
    shorter = icons.fewer(SCRIPT, {"sun", "magnifying-glass", "navicon", "lg", "no-such-icon"})
    assert names(icons, shorter) == {"sun", "magnifying-glass", "bars"}
    assert len(shorter) < len(SCRIPT) / 10
    assert SCRIPT[:4000] == shorter[:4000] and SCRIPT[-4000:] == shorter[-4000:]


@pytest.mark.parametrize("script", ["", "var p={};", 'icons = [{"name": "sun"}]'])
def test_a_script_of_another_form_is_refused(icons, script):
    with pytest.raises(ExtensionError, match="no icons in the form known here"):
        icons.fewer(script, {"sun"})
