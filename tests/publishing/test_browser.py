"""The built book in a real browser: every page, on a screen and a phone, in light and dark.

Skipped when there is no built book (`make book`) or no Chromium; with SEQCIRC_BROWSER=required, as
in CI, that is a failure.
"""

import io
import os
import re
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urljoin, urlsplit

import letters
import pytest
from conftest import CHROMIUM

from seqcirc_utils import store
from seqcirc_utils.errors import UserError
from seqcirc_utils.publishing import pdf

HTML = store.ROOT / "_build" / "html"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PAGES = sorted(str(p.relative_to(HTML)) for p in HTML.rglob("*.html") if "_static" not in p.parts)
PAGES = [page for page in PAGES if page != "index.html"]  # which only leads to intro.html
CHAPTERS = [page for page in PAGES if page.startswith("runs/")]
MISSING = (
    "no built book: run `make book` first"
    if not PAGES
    else "no Chromium: install Debian's package chromium"
    if not CHROMIUM
    else ""
)
if MISSING and os.environ.get("SEQCIRC_BROWSER") == "required":
    pytest.fail(f"SEQCIRC_BROWSER=required, but there is {MISSING}.", pytrace=False)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(bool(MISSING), reason=f"there is {MISSING}"),
]
# What axe asks of colours, which are others in the dark; all else is as in the light.
COLOURS = ("color-contrast", "link-in-text-block")

# An image is blank if it shows one colour only. Drawn small, so that large figures are quick.
IMAGES = """async () => {
  const found = [];
  for (const image of document.images) {
    image.loading = "eager";
    await image.decode().catch(() => {});
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 64;
    const pen = canvas.getContext("2d");
    pen.drawImage(image, 0, 0, 64, 64);
    const data = new Uint32Array(pen.getImageData(0, 0, 64, 64).data.buffer);
    found.push([image.src, image.naturalWidth, new Set(data).size, image.alt]);
  }
  return found;
}"""
# What sticks out on the right, unless it lies in a box that scrolls by itself.
OVERFLOW = """() => {
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width) return [];
  return [...document.querySelectorAll("main *")]
    .filter(e => e.getBoundingClientRect().right > width + 1)
    .map(e => e.tagName + "." + e.className).slice(0, 5).concat("the page scrolls sideways");
}"""

# Each result shows some text of its page, fetched after the search itself has ended.
ALL_SUMMED_UP = """() => /finished/.test(document.querySelector("#search-results").innerText) &&
  [...document.querySelectorAll("#search-results li")].every(e => e.querySelector(".context"))"""


@pytest.fixture(scope="session")
def address():
    """Serve the book on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def go(context, address, name):
    """Open a page; what it complains about, and what it asks of others, is in ``page.faults``."""
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.faults = []
    page.on("console", lambda m: m.type == "error" and page.faults.append(m.text))
    page.on("pageerror", lambda e: page.faults.append(str(e)))
    page.on("requestfailed", lambda r: page.faults.append(f"failed: {r.url}"))
    page.on("response", lambda r: r.status >= 400 and page.faults.append(f"{r.status} {r.url}"))
    # Refused as well as noted: a test must not reach another machine.
    page.route(
        lambda url: not url.startswith((address, "data:", "blob:")),
        lambda route: (page.faults.append(f"asked for {route.request.url}"), route.abort()),
    )
    page.goto(address + name, wait_until="load")
    return page


def context_of(browser, size):
    # No transitions: what is looked at must have its final colours.
    options = {"color_scheme": "light", "reduced_motion": "reduce"}
    return browser.new_context(viewport=size, accept_downloads=True, **options)


@pytest.fixture
def opened(browser, address):
    """Open a page as one who has never been here."""
    contexts = []

    def anew(name, size=DESKTOP):
        contexts.append(context_of(browser, size))
        return go(contexts[-1], address, name)

    yield anew
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def sizes(browser):
    """A screen and a phone that look at one page after another: what they share is read once."""
    contexts = {"screen": context_of(browser, DESKTOP), "phone": context_of(browser, PHONE)}
    yield contexts
    for context in contexts.values():
        context.close()


@pytest.fixture(scope="module", params=PAGES or [pytest.param("", id="none")])
def on_screen(request, sizes, address):
    """Every page in turn, on a screen, for all that is asked of it."""
    page = go(sizes["screen"], address, request.param)
    page.name = request.param
    yield page
    page.close()


def test_a_page_loads_by_itself_with_all_its_pictures(on_screen):
    assert on_screen.locator("h1").count() >= 1
    for source, width, colours, alt in on_screen.evaluate(IMAGES):
        assert width > 0 and colours > 1, f"blank: {source}"
        assert "logo" in source or len(alt) > 15, f"says nothing to those who cannot see: {source}"
    assert on_screen.faults == []


def test_a_phone_needs_no_scrolling_sideways(on_screen, sizes, address):
    page = go(sizes["phone"], address, on_screen.name)
    assert page.evaluate(OVERFLOW) == []
    page.close()


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_axe_finds_nothing_serious(on_screen, mode):
    from axe_playwright_python.sync_playwright import Axe

    options = {"resultTypes": ["violations"]}
    if mode == "dark":
        options["runOnly"] = {"type": "rule", "values": COLOURS}
        on_screen.emulate_media(color_scheme=mode)
        on_screen.reload(wait_until="load")
    assert on_screen.evaluate("document.documentElement.dataset.theme") == mode
    found = Axe().run(on_screen, options=options).response["violations"]
    serious = [
        f"{v['id']}: {v['help']}: {v['nodes'][0]['html'][:200]} ({len(v['nodes'])} places)"
        for v in found
        if v["impact"] in ("serious", "critical")
    ]
    assert serious == []


class Links(HTMLParser):
    """The ids of a page, and where its links and sources lead."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids |= {attributes[k] for k in ("id", "name") if attributes.get(k)}
        self.links |= {attributes[k] for k in ("href", "src", "srcset") if attributes.get(k)}


def test_no_link_or_anchor_is_broken():
    known = {name: Links((HTML / name).read_text()) for name in PAGES}
    broken = []
    for name, page in known.items():
        for link in page.links:
            to = urlsplit(urljoin(f"/{name}", link))
            if to.scheme or to.netloc or link.startswith("#theme"):
                continue
            target = unquote(to.path).lstrip("/") or name
            if not (HTML / target).is_file():
                broken.append(f"{name}: {link}")
            elif to.fragment and target in known and unquote(to.fragment) not in known[target].ids:
                broken.append(f"{name}: {link}")
    assert broken == []


def test_the_next_page_and_the_side_bar_lead_on(opened):
    page = opened("intro.html")
    page.locator(".prev-next-footer a.right-next, a.right-next").first.click()
    page.wait_for_url("**/method.html")
    page.locator("nav.bd-links a", has_text="Provenance").first.click()
    page.wait_for_url("**/runs/provenance.html")
    assert page.faults == []


def test_a_phone_opens_the_side_bar(opened):
    page = opened("intro.html", PHONE)
    link = page.locator("nav.bd-links a", has_text="Provenance").first
    assert not link.is_visible()
    page.locator("button.primary-toggle:visible, label.primary-toggle:visible").first.click()
    link.click()
    page.wait_for_url("**/runs/provenance.html")


# Each figure as it is shown: the file, its width in pixels, and the file of a page's form.
SHOWN = """async () => {
  const found = [...document.querySelectorAll("main figure img")];
  for (const image of found) { image.loading = "eager"; await image.decode(); }
  return found.map(image =>
    [image.currentSrc, image.getBoundingClientRect().width, image.src]);
}"""


def test_letters_can_be_read_on_a_phone_and_on_a_screen_which_shows_the_wide_form(
    on_screen, sizes, address
):
    page = go(sizes["phone"], address, on_screen.name)
    narrow = page.evaluate(SHOWN)
    wide = on_screen.evaluate(SHOWN)
    for source, width, _ in narrow + wide:
        if source.endswith(".svg"):
            pixels = letters.least(page.request.get(source).text(), width)
            assert pixels >= letters.LEAST, f"{source}: letters of {pixels} pixels"
    page.close()
    assert [source for source, *_ in wide] == [source for *_, source in wide]
    assert len(wide) == len(narrow)


def test_a_phone_opens_a_figure_by_itself(opened):
    page = opened("runs/06_cross_task.html", PHONE)
    figure = page.locator("main figure a:has(img)").first
    shown = figure.locator("img").bounding_box()["width"]
    figure.click()
    page.wait_for_url("**/*.svg")
    assert float(page.evaluate("document.documentElement.width.baseVal.value")) > 1.2 * shown
    assert not opened("runs/06_cross_task.html").locator("main figure a:has(img)").count()


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("faithfulness", "glossary.html"),
        ("papermill", "rerun.html"),
        ("C14", "09_claims.html"),
        ("mlp0", "04_circuit_discovery.html"),
    ],
)
def test_search_finds_words_claims_and_components(opened, query, where):
    page = opened(f"search.html?q={query}")
    page.locator("#search-results li a").first.wait_for()
    page.locator(f'#search-results li a[href*="{where}"]').first.wait_for()
    page.wait_for_function(ALL_SUMMED_UP)
    assert page.faults == []


def test_dark_mode_can_be_switched_on(opened):
    page = opened("intro.html")

    def brightness():
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(c) for c in colour.strip("rgba()").split(",")[:3]) / 3

    assert brightness() > 200
    for _ in range(3):  # auto, light, dark
        if page.evaluate("document.documentElement.dataset.theme") != "dark":
            page.locator("button.theme-switch-button:visible").first.click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.wait_for_timeout(400)
    assert brightness() < 60


def test_one_switch_opens_all_code_and_the_reading_time_is_told(opened):
    page = opened("runs/09_claims.html")
    switch, code = page.locator("button.code-switch"), page.locator("main .cell details.hide")
    assert switch.is_visible() and page.locator(".reading-time").is_visible()
    for key, open_ in (("Enter", True), ("Space", False)):
        switch.press(key)
        assert switch.get_attribute("aria-pressed") == str(open_).lower()
        assert code.evaluate_all("found => found.map(e => e.open)") == [open_] * code.count()


@pytest.mark.parametrize("name", CHAPTERS)
def test_an_answer_is_folded_and_opens_by_key(opened, name):
    if name.endswith("provenance.html"):
        return
    page = opened(name)
    folds, answers = page.locator("main details.answer"), page.locator("main details.answer > p")
    assert folds.count() == (3 if "14_explore" in name else 1)
    assert not any(answer.is_visible() for answer in answers.all())
    page.locator("button.code-switch").press("Enter")  # which is for code
    assert not any(folds.evaluate_all("found => found.map(e => e.open)"))
    for fold in folds.all():
        handle = fold.get_by_text("Show the answer", exact=True)
        handle.focus()
        page.keyboard.press("Enter")
        assert fold.locator("p").first.is_visible() and len(fold.inner_text()) > 60
        page.keyboard.press("Space")
        assert not fold.locator("p").first.is_visible()
    page.emulate_media(media="print")
    assert all(answer.is_visible() for answer in answers.all())


def test_a_figure_says_where_it_comes_from(opened):
    page = opened("runs/11_interchange.html")
    for line in page.locator("main figure .legend").all():
        for link in line.locator("a.download").evaluate_all("found => found.map(a => a.href)"):
            assert page.request.get(link).ok, link
        line.get_by_text("parameters").click()
        assert page.locator(f"[id='{urlsplit(page.url).fragment}']").count()
    assert page.locator("main figure .legend").count() == page.locator("main figure img").count()
    assert page.faults == []


def test_a_figure_on_a_dark_page_is_no_light_box(opened):
    from matplotlib.image import imread

    page = opened("runs/11_interchange.html")
    page.emulate_media(color_scheme="dark")
    page.reload(wait_until="load")
    image = page.locator("main figure img").first
    image.scroll_into_view_if_needed()
    pixels = imread(io.BytesIO(image.screenshot()), format="png")[..., :3]
    under = page.evaluate("getComputedStyle(document.body).backgroundColor")
    under = [int(c) / 255 for c in under.strip("rgb()").split(",")[:3]]
    assert abs(pixels[2, 2] - under).max() < 0.03  # the page shows through
    assert pixels.mean() < 0.5 and pixels.min(axis=2).max() > 0.8  # and what was black is light


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_a_term_is_explained_on_hover_and_focus(opened, size):
    page = opened("runs/11_interchange.html", size)
    link, tip = page.locator("main a[data-definition]").first, page.locator("#definition")
    assert tip.is_hidden()
    link.focus()
    assert tip.is_visible() and len(tip.inner_text()) > 20
    assert link.get_attribute("aria-describedby") == "definition"
    box = tip.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= size["width"]
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    link.hover()
    assert tip.is_visible() and page.evaluate(OVERFLOW) == []
    assert page.faults == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_a_link_to_a_chapter_shows_its_finding_and_its_first_figure(opened, size):
    page = opened("intro.html", size)
    link = page.locator('main a[href="runs/11_interchange.html"]').first
    link.focus()
    tip = page.locator("#definition")
    finding = opened("runs/11_interchange.html").locator("main blockquote").first.inner_text()
    assert f"In short. {tip.inner_text()}".split() == finding.split()
    image = tip.locator("img")
    image.evaluate("image => image.decode()")
    assert image.evaluate("image => image.naturalWidth") > 100
    box = tip.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= size["width"]
    assert box["y"] >= 0 and page.evaluate(OVERFLOW) == [] and page.faults == []


def test_claims_are_filtered_by_verdict(opened):
    page = opened("runs/09_claims.html")
    choice, told = page.locator(".claims-filter select"), page.locator(".claims-filter output")
    total = int(told.inner_text().split()[2])
    left = 0
    for value in choice.locator("option").evaluate_all("found => found.map(o => o.value)")[1:]:
        choice.select_option(value)
        left += int(told.inner_text().split()[0])
        assert int(told.inner_text().split()[0]) < total
    assert left == total  # every claim has one verdict
    shared = page.url
    assert "#verdict=" in shared
    again = opened("runs/09_claims.html" + shared[shared.index("#") :])
    assert again.locator(".claims-filter select").input_value() == value
    assert again.locator(".claims-filter output").inner_text() == told.inner_text()
    again.locator(".claims-filter select").select_option("")
    assert again.locator(".claims-filter output").inner_text().startswith(f"{total} of")


def test_the_first_column_stays_while_a_table_scrolls(opened):
    page = opened("runs/digits/04_circuit_discovery.html", PHONE)
    moved = page.evaluate("""() => {
      for (const table of document.querySelectorAll("main table:not([style*=min-width])")) {
        let box = table;
        while (box && !(box.scrollWidth > box.clientWidth + 40 &&
          /auto|scroll/.test(getComputedStyle(box).overflowX))) box = box.parentElement;
        if (!box || !box.closest("main")) continue;
        const cell = table.rows[table.rows.length - 1].cells[0];
        const before = cell.getBoundingClientRect().x;
        box.scrollLeft = 40;
        return [box.scrollLeft, cell.getBoundingClientRect().x - before];
      }
      return null;
    }""")
    assert moved is not None and moved[0] == 40 and abs(moved[1]) < 20  # up to its padding


# Words of titles that are broken over two lines.
BROKEN = """() => {
  const title = document.querySelector("main article h1"), found = [];
  const walk = document.createTreeWalker(title, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) for (const word of walk.currentNode.data.matchAll(/[^\\s-]+/g)) {
    const range = document.createRange();
    range.setStart(walk.currentNode, word.index);
    range.setEnd(walk.currentNode, word.index + word[0].length);
    if (new Set([...range.getClientRects()].map((box) => box.top)).size > 1) found.push(word[0]);
  }
  return found;
}"""


def test_no_word_of_a_title_is_broken_on_a_phone(opened):
    assert CHAPTERS
    for name in CHAPTERS:
        page = opened(name, PHONE)
        assert page.evaluate(BROKEN) == [], name
        page.close()


# Rows of tables whose last cell is covered at the right end, and names that fill half of the box.
COVERED = """() => {
  const found = [];
  for (const table of document.querySelectorAll("main table")) {
    if (!table.checkVisibility()) continue;
    let space = Infinity;
    for (let box = table; box && box.tagName !== "MAIN"; box = box.parentElement) {
      box.scrollLeft = box.scrollWidth;
      if (box.scrollLeft) space = Math.min(space, box.clientWidth);
    }
    for (const row of table.rows) {
      if (!row.checkVisibility()) continue;
      for (const name of row.cells)
        if (getComputedStyle(name).position === "sticky" && name.offsetWidth > space / 2)
          found.push("wide: " + name.innerText.slice(0, 80));
      const cell = row.cells[row.cells.length - 1];
      cell.scrollIntoView({block: "center", inline: "nearest", behavior: "instant"});
      const at = cell.getBoundingClientRect();
      const x = Math.min(at.right, innerWidth) - 12;
      const top = document.elementFromPoint(x, at.top + at.height / 2);
      if (!cell.contains(top)) found.push(row.innerText.slice(0, 80));
    }
  }
  return found;
}"""


# Icons that were asked for and are not drawn, and how many are.
ICONS = """() => [
  [...document.querySelectorAll("i[class*=fa-], svg.svg-inline--fa")]
    .filter(e => e.tagName === "I" || !e.querySelector("path[d]") || e.matches(".fa-missing"))
    .map(e => e.outerHTML),
  document.querySelectorAll("svg.svg-inline--fa").length,
]"""


def test_every_icon_is_drawn_and_a_page_is_light(browser, address, on_screen):
    context = context_of(browser, DESKTOP)  # which has nothing in its cache
    weights = []
    page = context.new_page()
    page.on("response", lambda r: weights.append(len(r.body())))
    page.goto(address + on_screen.name, wait_until="load")
    page.wait_for_selector("svg.svg-inline--fa", state="attached")
    missing, drawn = page.evaluate(ICONS)
    assert not missing and drawn >= 5
    assert sum(weights) < 2_000_000, f"{sum(weights) / 1e6:.1f} MB"
    context.close()


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_each_cell_of_a_card_says_what_it_is_of(browser, address, size):
    context = browser.new_context(viewport=size)
    page = go(context, address, "runs/09_claims.html")
    heads, labelled, wide = page.evaluate(
        """() => {
          const [head, ...rows] = document.querySelector("table.cards").rows;
          const said = (cell) => getComputedStyle(cell, "::before").content;
          const names = [...head.cells].slice(1).map((cell) => cell.textContent);
          const labelled = (row, name, i) => said(row.cells[i + 1]).startsWith(`"${name}`);
          const right = rows.map((row) => names.every((name, i) => labelled(row, name, i)));
          return [head.checkVisibility() ? null : names, right, rows.map((r) => r.offsetWidth)];
        }"""
    )
    assert labelled == [True] * 27 and heads[1] == "carries over?"
    assert max(wide) <= size["width"]
    context.close()


def test_a_phone_reaches_the_last_column_of_every_table(on_screen, sizes, address):
    page = go(sizes["phone"], address, on_screen.name)
    assert page.evaluate(COVERED) == []
    page.close()


def test_the_circuit_map_answers(opened):
    page = opened("runs/06_cross_task.html")
    map_, told = page.locator(".seqcirc-map").first, page.locator(".seqcirc-map .d").first
    cell = map_.locator("g.c.s").first
    cell.hover()
    assert "in the circuit" in told.inner_text()
    for link in told.locator("a").evaluate_all("found => found.map(a => a.href)"):
        assert page.request.get(link).ok, link
    before, count = told.inner_text(), map_.locator("p.n").inner_text()
    button = map_.locator("button").first
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert map_.locator(".t0").first.is_hidden()
    assert map_.locator("p.n").inner_text() != count  # fewer tasks share more
    cell.focus()
    page.keyboard.press("ArrowRight" if "MLP" not in before else "ArrowLeft")
    assert told.inner_text() != before
    assert page.faults == []


EXPLORE = "runs/14_explore.html"


def explored(page):
    """All numbers of the page to explore."""
    return page.evaluate("JSON.parse(document.getElementById('explore-data').textContent)")


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_parts_are_switched_off_by_pointer_key_and_touch(opened, size):
    page = opened(EXPLORE, size)
    root, data = page.locator("#explore-parts"), explored(page)
    told, undo = root.locator(".told"), root.locator(".undo")
    first = told.inner_text()
    assert undo.is_disabled() and root.locator("tbody tr").count() == 5
    chip = root.locator("label", has_text="shared core").first
    chip.click()
    place = next(i for i, part in enumerate(data["parts"]) if part[0] == "core-off")
    gap, tokens, shares = data["ablated"][data["prompts"][0][0]][place]
    assert told.inner_text().startswith("Without the shared core")
    assert f"{gap:.2f}".replace("-", "\u2212") in told.inner_text()
    cells = root.locator("tbody tr").first.locator("td").all_inner_texts()
    assert cells[3] == f"{100 * shares[0]:.1f}%"
    assert data["tokens"][tokens[0]].replace(" ", "\u2423") in cells[2]
    page.keyboard.press("ArrowRight")
    assert not told.inner_text().startswith("Without the shared core")
    root.locator("select").select_option(data["prompts"][-1][0])
    assert data["prompts"][-1][2] in root.locator(".prompt").inner_text()
    for _ in range(3):
        undo.press("Enter")
    assert undo.is_disabled() and told.inner_text() == first
    assert root.locator("input:focus").count() == 1  # the focus is not lost with the button
    assert page.evaluate(OVERFLOW) == [] and page.faults == []


def test_what_is_tapped_on_a_phone_is_switched_off(browser, address):
    context = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True)
    page = go(context, address, EXPLORE)
    chip = page.locator("#explore-parts label").nth(2)
    box = chip.bounding_box()
    assert box["width"] >= 24 and box["height"] >= 24  # WCAG 2.2's least target
    chip.tap()
    assert chip.locator("input").is_checked()
    assert page.locator("#explore-parts .told").inner_text().startswith("Without head")
    context.close()


def test_a_link_leads_back_to_what_was_chosen(opened, browser):
    page = opened(EXPLORE)
    root, data = page.locator("#explore-parts"), explored(page)
    root.locator("select").select_option(data["prompts"][-1][0])
    root.locator("label", has_text="nothing").click()
    root.locator("label").last.click()
    told, shared = root.locator(".told").inner_text(), page.url[page.url.index("#") :]
    assert f"part={data['parts'][-1][0]}" in shared
    again = opened(EXPLORE + shared)
    assert again.locator("#explore-parts .told").inner_text() == told
    assert opened(EXPLORE + "#prompt=x&part=y").faults == []
    context = context_of(browser, DESKTOP)
    file = context.new_page()  # without a server
    file.goto((HTML / EXPLORE).as_uri() + shared)
    assert file.locator("#explore-parts .told").inner_text() == told
    file.locator("#explore-parts .reset").click()
    assert "part=intact" in file.url
    context.close()


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_a_place_is_swapped_by_pointer_and_key(opened, size):
    page = opened(EXPLORE, size)
    root, data = page.locator("#explore-swap"), explored(page)["swaps"]
    slider, told = root.locator("input[type=range]"), root.locator(".told")
    first, pair = told.inner_text(), data["pairs"][" ".join(data["first"])]
    assert f"before block {data['layers'][data['start']]}," in first
    shares = root.locator(".three td.share").all_inner_texts()
    now = pair[1][data["start"]][2]
    assert shares == ["< 0.1%" if p < 0.001 else f"{100 * p:.1f}%" for p in now]
    slider.press("Home")
    assert slider.get_attribute("aria-valuetext") == "before block 0"
    assert told.inner_text() != first
    slider.press("End")
    assert f"before block {data['layers'][-1]}," in told.inner_text()
    source = data["first"][0]
    root.locator("#explore-base").select_option(source)  # into itself: nothing changes
    columns = root.locator(".five tbody tr").first.locator("td").all_inner_texts()
    assert columns[1] == columns[3] and "both are at one place" in told.inner_text()
    shared = page.url[page.url.index("#") :]
    again = opened(EXPLORE + shared, size).locator("#explore-swap")
    assert again.locator(".told").inner_text() == told.inner_text()
    assert again.locator("#explore-base").input_value() == source
    assert page.evaluate(OVERFLOW) == [] and page.faults == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_attention_is_shown_on_hover_and_focus(opened, size):
    page = opened(EXPLORE, size)
    root, data = page.locator("#explore-attention"), explored(page)["attention"]
    told, boxes = root.locator(".told"), root.locator(".tokens")
    task, _, (tokens, _) = data["reads"][0]
    assert boxes.count() == 2 and boxes.first.locator("button").count() == len(tokens)
    assert f"token {len(tokens)} of {len(tokens)}" in told.inner_text()  # where the answer is read
    boxes.first.locator("button").nth(2).hover()
    assert f"token 3 of {len(tokens)}" in told.inner_text()
    boxes.first.locator("button").nth(3).focus()
    page.keyboard.press("ArrowRight")
    assert f"token 5 of {len(tokens)}" in told.inner_text()
    row = data["weights"][task][0][0][10:15]  # of the fifth token: after 1 + 2 + 3 + 4
    share = root.locator("tbody td.share").first.inner_text()
    assert share == ("< 1%" if max(row) == 0 else f"{max(row)}%")
    looks = [
        float(b.evaluate("b => b.style.getPropertyValue('--look')"))
        for b in boxes.first.locator("button").all()
    ]
    assert looks[:5] == [w / 100 for w in row] and not any(looks[5:])
    root.locator("#explore-head").select_option(index=1)
    root.locator("#explore-read").select_option(index=1)
    boxes.last.locator("button").nth(6).click()
    shared = page.url[page.url.index("#") :]
    again = opened(EXPLORE + shared, size).locator("#explore-attention .told")
    assert again.inner_text() == told.inner_text() and "token 7 of" in told.inner_text()
    assert page.evaluate(OVERFLOW) == [] and page.faults == []


def test_the_page_to_explore_is_small():
    assert (HTML / EXPLORE).stat().st_size < 1.5e6


@pytest.mark.parametrize("name", CHAPTERS or [""])
def test_a_chapter_gives_its_data_and_its_notebook(opened, name):
    """Every chapter made by a notebook can be had as that notebook, and its figures as data."""
    if name == "runs/provenance.html":
        pytest.skip("not a notebook")
    page = opened(name)
    links = page.locator("a.download").evaluate_all("found => found.map(a => a.href)")
    assert any(link.endswith((".csv", ".json")) for link in links)
    for link in links:
        answer = page.request.get(link)
        assert answer.ok and len(answer.body()) > 20, link
    notebook = page.locator('a[href$=".ipynb"]').first.get_attribute("href")
    assert page.request.get(urljoin(page.url, notebook)).ok


def test_the_book_prints_as_one_pdf(tmp_path):
    file = tmp_path / "book.pdf"
    # In a process of its own: one has only one Playwright, and the other tests hold theirs.
    subprocess.run([sys.executable, "-m", "seqcirc_utils", "pdf", str(file)], check=True)
    book = file.read_bytes()
    assert book.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", book)) > len(PAGES)
    assert b"/Outlines" in book and book.count(b"/Dest") > len(PAGES)
    assert b"/URI (file" not in book  # of this machine


def test_what_stands_in_the_way_of_a_pdf_is_said(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(UserError, match="no Chromium"):
            pdf.write(tmp_path / "book.pdf")
    monkeypatch.setattr(store, "ROOT", tmp_path)
    with pytest.raises(UserError, match="make book"):
        pdf.write(tmp_path / "book.pdf")
    assert not list(tmp_path.iterdir())
