"""How large the letters of a drawn figure are; matplotlib writes them into its SVG as paths."""

import re

LEAST = 8
"""Pixels that a letter's font has at the least."""
ROOM = 342
"""Pixels that a phone 390 px wide leaves for a figure."""


def sizes(svg):
    """An SVG's width, and the font size of each of its texts, both in points."""
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])
    # A text is scaled from glyphs of 100 points; in <defs> are the glyphs themselves.
    drawn = re.sub(r"(?s)<defs>.*?</defs>", "", svg)
    return width, [100 * float(s) for s in re.findall(r"scale\((0\.\d+) -0\.\d+\)", drawn)]


def least(svg, shown):
    """Pixels of an SVG's smallest letters, where the SVG is shown that many pixels wide."""
    width, points = sizes(svg)
    return round(min(points) * shown / width, 2)
