"""The interactive circuit map as a page element: one HTML string with its own style and script.

The page stands in ``circuit_map.html``, ``.css`` and ``.js`` beside this module, with ``$name``
where it is filled in.

It asks no server for anything and needs no library. Without scripts it still shows the map and a
table; with them tasks are switched on and off, and each component tells about itself when it is
pointed at, tapped, or reached with the arrow keys.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from seqcirc_utils.components import Component
from seqcirc_utils.errors import UserError


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


# Colours of text and lines are the page's own (currentColor): right in light and in dark mode.
# The table's class makes the book's theme leave the background alone in dark mode.
_PAGE = Template(
    Template(_file("circuit_map.html")).safe_substitute(
        style=_file("circuit_map.css").rstrip(), script=_file("circuit_map.js").rstrip()
    )
)
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


def interactive(
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
    facts: Mapping[str, Mapping[Component, Sequence[str]]] | None = None,
    explore: str = "",
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
        facts: Task to component to what else is known of it, in short sentences.
        explore: The page where what all circuits hold can be switched off.
        name: Makes the ids of the page element; two on one page need two names.

    Returns:
        HTML.

    Raises:
        UserError: when there is no circuit.
    """
    titles, roles, effects = titles or {}, roles or {}, effects or {}
    role_letters, facts = role_letters or {}, facts or {}
    tasks = list(circuits)
    if not tasks:
        raise UserError("there is no circuit to draw: give at least one.")
    named = [titles.get(t, t) for t in tasks]
    cells, details, rows = [], {}, []
    for component in _reading_order(n_layers, n_heads):
        found = [
            (
                component in circuits[t],
                roles.get(t, {}).get(component),
                effects.get(t, {}).get(component),
            )
            for t in tasks
        ]
        known = [facts.get(t, {}).get(component, ()) for t in tasks]
        details[str(component)] = [_detail(*f, k) for f, k in zip(found, known, strict=True)]
        place = _place(component, n_layers, n_heads)
        shown = [(title, colours[t], *f) for title, t, f in zip(named, tasks, found, strict=True)]
        cells.append(_cell(component, place, shown, role_letters, focus=not cells))
        if any(inside for inside, *_ in found):
            rows.append(_row(component, found))
    used = {r for t in tasks for c in circuits[t] if (r := roles.get(t, {}).get(c))}
    key = " · ".join(
        f"<b>{escape(letter)}</b> {escape(role)}"
        for role, letter in role_letters.items()
        if role in used
    )
    data = {
        "tasks": named,
        "links": [(links or {}).get(t) for t in tasks],
        "explore": explore,
        "cells": details,
    }
    return _PAGE.substitute(
        id=f"seqcirc-{escape(name)}",
        width=_LEFT + _CELL * (n_heads + 1) + _GAP + 4,
        height=_TOP + _ROW * n_layers + 36,
        buttons="".join(_button(i, named[i], colours[t]) for i, t in enumerate(tasks)),
        axes=_axes(n_layers, n_heads),
        cells="".join(cells),
        key=f"<p>Letters: {key}.</p>" if key else "",
        heading="".join(f"<th>{escape(title)}</th>" for title in named),
        rows_of_cells=n_layers,
        rows="".join(rows),
        # "<" never appears raw, so that nothing in the data can end the script element.
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        hidden="".join(
            f"#seqcirc-{escape(name)}.off{i} .t{i}{{display:none}}" for i in range(len(tasks))
        ),
    )


def _detail(
    inside: bool, role: str | None, effect: float | None, facts: Sequence[str]
) -> list[Any]:
    """What the page's script is told of a component in one task."""
    told = [int(inside), role or "", None if effect is None else round(100 * effect, 1)]
    return [*told, list(facts)] if facts else told


def _reading_order(n_layers: int, n_heads: int) -> list[Component]:
    """All components as the map is read: the last layer first, its MLP after its heads."""
    layers = reversed(range(n_layers))
    return [Component(layer, head) for layer in layers for head in [*range(n_heads), None]]


def _button(i: int, title: str, colour: str) -> str:
    return (
        f'<button type="button" aria-pressed="true" data-task="{i}" '
        f'style="--task:{escape(colour)}"><span aria-hidden="true"></span>{escape(title)}</button>'
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
