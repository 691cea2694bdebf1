"""The interactive map is self-contained, says what the circuits say, and works for every reader."""

import json
import re
import tomllib
from html.parser import HTMLParser

import pytest

from seqcirc_utils import store
from seqcirc_utils.components import Component
from seqcirc_utils.errors import UserError
from seqcirc_utils.figures import circuit_map, style
from seqcirc_utils.workflow.fingerprint import drawing_sources, sources

SHARED, OWN, MLP = Component(1, 0), Component(2, 1), Component(0, None)
CIRCUITS = {"digits": {SHARED, MLP}, "months": {SHARED, OWN, MLP}}
ROLES = {
    "digits": {SHARED: "next member", MLP: "none"},
    "months": {SHARED: "copy", OWN: "<b>odd</b></script>", MLP: "none"},
}
VOID = {"rect", "br", "img", "meta", "link"}


class Reader(HTMLParser):
    """Elements in order, and whether every one is closed."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.text = [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data):
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)


def draw(**options):
    options = {"roles": ROLES, "effects": {"digits": {SHARED: -0.25}}} | options
    letters = circuit_map.letters(["next member", "copy"])
    return circuit_map.interactive(
        CIRCUITS, 3, 2, style.task_colours(list(CIRCUITS)), role_letters=letters, **options
    )


@pytest.fixture(scope="module")
def page():
    reader = Reader(draw(titles={"months": "Months of the <year>"}))
    assert not reader.open
    return reader


def test_it_asks_nobody_for_anything():
    text = draw()
    assert not re.search(r"https?:|//|\bsrc=|\bhref=|@import|url\(|\$", text)
    rules = re.search(r"<style>(.*?)</style>", text, re.S).group(1)
    for rule in filter(None, map(str.strip, rules.replace("\n", "").split("}"))):
        selectors = rule.split("{")[0].split(",")
        assert all(s.startswith("#seqcirc-circuit-map") for s in selectors), rule


def test_every_component_is_there_once_and_can_be_reached(page):
    cells = [a for tag, a in page.found if tag == "g" and "data-c" in a]
    names = [a["data-c"] for a in cells]
    assert names == ["2.0", "2.1", "mlp2", "1.0", "1.1", "mlp1", "0.0", "0.1", "mlp0"]
    assert [a["tabindex"] for a in cells].count("0") == 1 and all(a["aria-label"] for a in cells)
    said = {a["data-c"]: a["aria-label"] for a in cells}
    assert said["1.0"] == "Head 1.0: in digits (next member), Months of the <year> (copy)"
    assert said["0.0"] == "Head 0.0: in no circuit"
    shared = {a["data-c"] for a in cells if a["class"] == "c s"}
    assert shared == {"1.0", "mlp0"}


def test_tasks_have_buttons_that_say_their_state(page):
    buttons = [a for tag, a in page.found if tag == "button"]
    assert [b["aria-pressed"] for b in buttons] == ["true", "true"]
    assert page.text["button"] == ["digits", "Months of the <year>"]


def test_stripes_letters_and_data_follow_the_circuits(page):
    stripes = [a["class"] for tag, a in page.found if tag == "rect" and a["class"][0] == "t"]
    assert stripes.count("t0") == 2 and stripes.count("t1") == 3
    letters = [t for t in page.text["text"] if t in "NC"]
    assert sorted(letters) == ["C", "N"]
    data = json.loads(page.text["script"][0])
    assert data["cells"]["1.0"] == [[1, "next member", -25.0], [1, "copy", None]]
    assert data["cells"]["2.1"][1] == [1, "<b>odd</b></script>", None]
    rows = page.text["th"]
    assert [r for r in rows if r.startswith(("Head", "MLP"))] == ["Head 2.1", "Head 1.0", "MLP 0"]


def test_two_on_a_page_do_not_meddle():
    assert 'id="seqcirc-a"' in draw(name="a") and "#seqcirc-circuit-map" not in draw(name="a")


def test_it_draws_without_roles_and_effects_but_not_without_circuits():
    Reader(draw(roles=None, effects=None))
    with pytest.raises(UserError, match="no circuit to draw"):
        circuit_map.interactive({}, 3, 2, {})


def test_letters_are_initials_and_never_twice():
    roles = ("next member", "copy", "copies last member", "none", "transport to the end")
    assert circuit_map.letters(roles) == dict(zip(roles, "NCLOT", strict=True))


def test_ink_can_be_read():
    assert circuit_map.ink("#000000") == "#ffffff" and circuit_map.ink("#ffffff") == "#000000"
    assert circuit_map.ink("#0072B2") == "#ffffff" and circuit_map.ink("#E69F00") == "#000000"


def test_its_files_are_installed_and_outdate_the_page_alone():
    package = store.ROOT / "seqcirc_utils"
    beside = {path for path in package.rglob("*.*") if path.suffix not in (".py", ".pyc")}
    project = tomllib.loads((store.ROOT / "pyproject.toml").read_text("utf-8"))
    installed = project["tool"]["setuptools"]["package-data"]["seqcirc_utils"]
    assert {f"**/*{path.suffix}" for path in beside} <= set(installed)
    files = {package / "figures" / f"circuit_map.{end}" for end in ("html", "css", "js")}
    assert files <= beside and files <= set(drawing_sources("06_cross_task"))
    assert not files & set(sources("06_cross_task"))


def test_what_else_is_known_goes_with_the_component():
    facts = {"months": {SHARED: ["reads mlp0", "<i>odd</i></script>"]}}
    reader = Reader(draw(facts=facts, explore="14_explore.html"))
    data = json.loads("".join(reader.text["script"][:1]))
    assert data["cells"]["1.0"][1] == [1, "copy", None, facts["months"][SHARED]]
    assert data["cells"]["1.0"][0] == [1, "next member", -25.0]
    assert data["explore"] == "14_explore.html" and not reader.open
