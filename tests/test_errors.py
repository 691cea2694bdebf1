"""A section that is refused ends alone."""

import pytest

from seqcirc_utils.errors import CannotDo, UserError, section


@pytest.mark.parametrize("kind", [UserError, CannotDo])
def test_what_is_refused_ends_only_its_section(kind):
    missing, done = {}, []
    for name in ("lens", "direct", "ov"):
        with section(missing, name):
            if name == "direct":
                raise kind("not this one")
            done.append(name)
    assert missing == {"direct": "not this one"} and done == ["lens", "ov"]


def test_a_bug_is_no_refusal():
    missing = {}
    with pytest.raises(KeyError), section(missing, "lens"):
        raise KeyError("a bug")
    assert missing == {}
