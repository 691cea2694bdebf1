"""The circuit map as a page element: one HTML string with its own style and script.

It asks no server for anything and needs no library. Without scripts it still shows the map and a
table; with them tasks are switched on and off, and each component tells about itself when it is
pointed at, tapped, or reached with the arrow keys.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from string import Template

from seqcirc_utils.components import Component
from seqcirc_utils.errors import UserError

_CELL, _ROW, _LEFT, _TOP, _GAP = 34, 19, 40, 6, 16  # sizes in the drawing's own units


def letters(roles: Sequence[str]) -> dict[str, str]:
    """One letter for each role: an initial of its words that no role before it has taken."""
    found: dict[str, str] = {}
    for role in roles:
        choices = [word[0] for word in role.split()] + list(role + "abcdefghijklmnopqrstuvwxyz")
        free = (c.upper() for c in choices if c.isalpha() and c.upper() not in found.values())
        found[role] = next(free)
    return found


def ink(colour: str) -> str:
    """Black or white, whichever reads better on ``colour`` (``#rrggbb``; WCAG's contrast)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#000000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"


def circuit_map(
    circuits: Mapping[str, set[Component]],
    n_layers: int,
    n_heads: int,
    colours: Mapping[str, str],
    *,
    titles: Mapping[str, str] | None = None,
    roles: Mapping[str, Mapping[Component, str]] | None = None,
    effects: Mapping[str, Mapping[Component, float]] | None = None,
    role_letters: Mapping[str, str] | None = None,
    links: Mapping[str, str] | None = None,
    name: str = "circuit-map",
) -> str:
    """All circuits in one interactive map.

    Args:
        circuits: Task to circuit.
        n_layers: Layers of the model.
        n_heads: Heads in a layer.
        colours: Task to colour (``#rrggbb``).
        titles: Task to the name on its button.
        roles: Task to component to role; what is missing is said to be unknown.
        effects: Task to component to the effect of its ablation, as a share of the logit
            difference.
        role_letters: Role to the letter that stands in the map; roles without one show none.
        links: Task to the page with the evidence for its roles.
        name: Makes the ids of the page element; two on one page need two names.

    Returns:
        HTML.

    Raises:
        UserError: when there is no circuit.
    """
    titles, roles, effects = titles or {}, roles or {}, effects or {}
    role_letters = role_letters or {}
    tasks = list(circuits)
    if not tasks:
        raise UserError("there is no circuit to draw: give at least one.")
    cells, details, rows = [], {}, []
    for layer in reversed(range(n_layers)):
        for head in [*range(n_heads), None]:
            component = Component(layer, head)
            found = [
                (
                    component in circuits[t],
                    roles.get(t, {}).get(component),
                    effects.get(t, {}).get(component),
                )
                for t in tasks
            ]
            details[str(component)] = [
                [int(inside), role or "", None if e is None else round(100 * e, 1)]
                for inside, role, e in found
            ]
            place = _place(component, n_layers, n_heads)
            shown = [(titles.get(t, t), colours[t], *f) for t, f in zip(tasks, found, strict=True)]
            cells.append(_cell(component, place, shown, role_letters, focus=not cells))
            if any(inside for inside, *_ in found):
                rows.append(_row(component, found))
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-task="{i}" '
        f'style="--task:{escape(colours[t])}"><span aria-hidden="true"></span>'
        f"{escape(titles.get(t, t))}</button>"
        for i, t in enumerate(tasks)
    )
    used = {r for t in tasks for c in circuits[t] if (r := roles.get(t, {}).get(c))}
    key = " · ".join(
        f"<b>{escape(letter)}</b> {escape(role)}"
        for role, letter in role_letters.items()
        if role in used
    )
    heading = "".join(f"<th>{escape(titles.get(t, t))}</th>" for t in tasks)
    data = {
        "tasks": [titles.get(t, t) for t in tasks],
        "links": [(links or {}).get(t) for t in tasks],
        "cells": details,
    }
    return _PAGE.substitute(
        id=f"seqcirc-{escape(name)}",
        width=_LEFT + _CELL * (n_heads + 1) + _GAP + 4,
        height=_TOP + _ROW * n_layers + 36,
        buttons=buttons,
        axes=_axes(n_layers, n_heads),
        cells="".join(cells),
        key=f"<p>Letters: {key}.</p>" if key else "",
        heading=heading,
        rows_of_cells=n_layers,
        rows="".join(rows),
        # "<" never appears raw, so that nothing in the data can end the script element.
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        hidden="".join(
            f"#seqcirc-{escape(name)}.off{i} .t{i}{{display:none}}" for i in range(len(tasks))
        ),
    )


def _place(component: Component, n_layers: int, n_heads: int) -> tuple[int, int]:
    column = n_heads if component.head is None else component.head
    gap = _GAP if component.head is None else 0
    return _LEFT + _CELL * column + gap, _TOP + _ROW * (n_layers - 1 - component.layer)


def _spoken(component: Component) -> str:
    return f"MLP {component.layer}" if component.head is None else f"Head {component}"


def _cell(
    component: Component,
    place: tuple[int, int],
    shown: Sequence[tuple],
    role_letters: Mapping[str, str],
    focus: bool,
) -> str:
    """One component; ``shown`` holds title, colour, whether in the circuit, and role, by task."""
    x, y = place
    width, height = _CELL - 4, _ROW - 3
    stripe = width / len(shown)
    parts = [f'<rect class="e" x="{x}" y="{y}" width="{width}" height="{height}"/>']
    said = []
    for i, (title, colour, inside, role, _) in enumerate(shown):
        if not inside:
            continue
        said.append(title + (f" ({role})" if role else ""))
        left = x + i * stripe
        parts.append(
            f'<rect class="t{i}" x="{left:.1f}" y="{y}" width="{stripe:.1f}" height="{height}" '
            f'fill="{escape(colour)}"/>'
        )
        if letter := role_letters.get(role):
            parts.append(
                f'<text class="t{i}" x="{left + stripe / 2:.1f}" y="{y + 12}" '
                f'fill="{ink(colour)}">{escape(letter)}</text>'
            )
    parts.append(f'<rect class="f" x="{x}" y="{y}" width="{width}" height="{height}"/>')
    shared = " s" if len(said) == len(shown) else ""
    label = f"{_spoken(component)}: {'in ' + ', '.join(said) if said else 'in no circuit'}"
    return (
        f'<g class="c{shared}" role="button" tabindex="{0 if focus else -1}" data-c="{component}" '
        f'aria-label="{escape(label)}">{"".join(parts)}</g>'
    )


def _row(component: Component, found: Sequence[tuple]) -> str:
    parts = []
    for inside, role, effect in found:
        said = (role or "in") if inside else "–"
        said += "" if effect is None else f" ({100 * effect:+.1f}%)"
        parts.append(f"<td>{escape(said)}</td>")
    return f'<tr><th scope="row">{_spoken(component)}</th>{"".join(parts)}</tr>'


def _axes(n_layers: int, n_heads: int) -> str:
    bottom = _TOP + _ROW * n_layers
    parts = []
    step = max(1, n_heads // 12)
    for head in range(0, n_heads, step):
        x = _LEFT + _CELL * head + (_CELL - 4) / 2
        parts.append(f'<text x="{x}" y="{bottom + 11}">{head}</text>')
    x = _LEFT + _CELL * n_heads + _GAP + (_CELL - 4) / 2
    parts.append(f'<text x="{x}" y="{bottom + 11}">MLP</text>')
    parts.append(f'<text x="{_LEFT + _CELL * n_heads / 2}" y="{bottom + 28}">head</text>')
    for layer in range(0, n_layers, 2 if n_layers > 12 else 1):
        y = _TOP + _ROW * (n_layers - 1 - layer) + 12
        parts.append(f'<text x="{_LEFT - 12}" y="{y}">{layer}</text>')
    middle = _TOP + _ROW * n_layers / 2
    parts.append(f'<text transform="translate(10 {middle}) rotate(-90)">layer</text>')
    return f'<g class="a" aria-hidden="true">{"".join(parts)}</g>'


# Colours of text and lines are the page's own (currentColor): right in light and in dark mode.
# The table's class makes the book's theme leave the background alone in dark mode.
_PAGE = Template("""\
<div id="$id" class="seqcirc-map">
<style>
#$id{max-width:44rem;font-size:.9rem;color:inherit}
#$id .bar{display:flex;flex-wrap:wrap;gap:.5rem;margin:.4rem 0}
#$id button{font:inherit;color:inherit;background:transparent;border:1px solid currentColor;
border-radius:.4rem;padding:.3rem .7rem;min-height:2.2rem;cursor:pointer}
#$id button span{display:inline-block;width:.8em;height:.8em;margin-right:.45em;
background:var(--task);border:1px solid var(--task)}
#$id button[aria-pressed=false]{opacity:.65;text-decoration:line-through}
#$id button[aria-pressed=false] span{background:transparent}
#$id .m{display:flex;flex-wrap:wrap;gap:1rem;align-items:flex-start}
#$id svg{display:block;flex:3 1 20rem;min-width:0;height:auto;background:none}
#$id svg text{font:600 10px sans-serif;text-anchor:middle}
#$id .a text{font-weight:400;font-size:11px;fill:currentColor}
#$id .e{fill:#888;fill-opacity:.18}
#$id .f{fill:none;stroke:currentColor;stroke-width:0}
#$id .s .f{stroke-width:2}
#$id .c{cursor:pointer;outline:none}
#$id .c:hover .f,#$id .c:focus .f,#$id .p .f{stroke-width:2.5;stroke-dasharray:3 2}
#$id .d{border:1px solid currentColor;border-radius:.4rem;padding:.4rem .7rem;min-height:10rem;
flex:1 1 12rem;box-sizing:border-box;position:sticky;top:5rem;bottom:.5rem;
background:var(--pst-color-background,var(--jp-layout-color1,Canvas));
color:var(--pst-color-text-base,var(--jp-content-font-color1,CanvasText))}
#$id .d ul{margin:.2rem 0 0;padding-left:1.1rem}
#$id .d p,#$id p{margin:.3rem 0}
#$id .w{overflow-x:auto}
$hidden
</style>
<div class="bar" role="group" aria-label="Tasks shown">$buttons</div>
<p class="n" aria-live="polite"></p>
<div class="m">
<svg viewBox="0 0 $width $height" role="group" aria-label="Map of the model: layers from bottom \
to top, heads from left to right, the MLP apart. Arrow keys move.">$axes$cells</svg>
<div class="d" aria-live="polite"><p>Point at a component, tap it, or move with the arrow keys, to \
see what it does in each task. Framed: in every circuit shown.</p></div>
</div>
$key
<details><summary>The circuits as a table</summary><div class="w"><table class="dataframe">
<thead><tr><th>component</th>$heading</tr></thead><tbody>$rows</tbody></table></div>
<p>Role in the task's circuit, – when outside it; in brackets the effect of ablating the component \
on the logit difference.</p></details>
<script type="application/json">$data</script>
<script>
(function () {
  var root = document.getElementById("$id");
  var data = JSON.parse(root.querySelector("script").textContent);
  var panel = root.querySelector(".d"), count = root.querySelector(".n");
  var buttons = Array.from(root.querySelectorAll("button"));
  var cells = Array.from(root.querySelectorAll(".c"));
  var pinned = null;
  function shown() {
    return buttons.map(function (b) { return b.getAttribute("aria-pressed") === "true"; });
  }
  function add(parent, tag, text) {
    var node = document.createElement(tag);
    node.textContent = text;
    parent.appendChild(node);
    return node;
  }
  function tell(cell) {
    var name = cell.dataset.c, list;
    panel.textContent = "";
    add(panel, "strong", name.indexOf("mlp") ? "Head " + name : "MLP " + name.slice(3));
    list = add(panel, "ul", "");
    data.cells[name].forEach(function (entry, i) {
      var text = data.tasks[i] + ": " + (entry[0] ? "in the circuit" : "not in the circuit");
      if (entry[1]) text += ", role: " + entry[1];
      if (entry[2] !== null) text += ", ablating it changes the logit difference by " +
        (entry[2] > 0 ? "+" : "") + entry[2].toFixed(1) + "%";
      var item = add(list, "li", text), link;
      if (entry[0] && data.links[i]) {
        item.appendChild(document.createTextNode(". "));
        link = add(item, "a", "Evidence");
        link.href = data.links[i];
        link.setAttribute("aria-label", "Evidence for " + data.tasks[i]);
      }
    });
  }
  function frame() {
    var on = shown(), heads = 0, mlps = 0, some = on.some(Boolean);
    cells.forEach(function (cell) {
      var shared = some && data.cells[cell.dataset.c].every(function (entry, i) {
        return entry[0] || !on[i];
      });
      cell.classList.toggle("s", shared);
      if (shared && cell.dataset.c.indexOf("mlp")) heads += 1;
      else if (shared) mlps += 1;
    });
    on.forEach(function (yes, i) { root.classList.toggle("off" + i, !yes); });
    count.textContent = some ? "In every circuit shown: " + heads + " heads, " + mlps + " MLPs."
      : "No circuit is shown.";
  }
  function pin(cell) {
    if (pinned) pinned.classList.remove("p");
    pinned = cell;
    if (cell) { cell.classList.add("p"); tell(cell); }
  }
  function move(cell) {
    cells.forEach(function (other) { other.setAttribute("tabindex", other === cell ? 0 : -1); });
    cell.focus({preventScroll: false});
  }
  buttons.forEach(function (button) {
    button.addEventListener("click", function () {
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
      frame();
    });
  });
  cells.forEach(function (cell, i) {
    var columns = cells.length / $rows_of_cells;
    cell.addEventListener("pointerenter", function () { if (!pinned) tell(cell); });
    cell.addEventListener("focus", function () { tell(cell); });
    cell.addEventListener("click", function () { pin(pinned === cell ? null : cell); });
    cell.addEventListener("keydown", function (event) {
      var step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns}[event.key];
      if (step && cells[i + step]) { move(cells[i + step]); event.preventDefault(); }
      else if (event.key === "Enter" || event.key === " ") { pin(cell); event.preventDefault(); }
      else if (event.key === "Escape") pin(null);
    });
  });
  frame();
})();
</script>
</div>
""")
