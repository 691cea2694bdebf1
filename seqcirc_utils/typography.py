"""Signs in what people read: a minus is a minus sign and not a hyphen.

Python writes a negative number with a hyphen, which is what files, code and commands need. What is
shown, in whichever way it came about, is mended in one place each: figures when they are closed
(:func:`seqcirc_utils.figures.style.closed`), outputs of notebooks when these are kept
(:func:`seqcirc_utils.workflow.execution.clean`).
"""

import re

_HYPHEN = re.compile(
    r"(?<![\w.)\]%-])-(?=\.?\d|inf\b)"  # before a number, and not between two, or in a name
    r"|(?<=\de)-(?=\d+\b)"  # in an exponent
)
_CODE_IN_HTML = re.compile(r"(?is)(<(script|style|code|pre|svg)\b.*?</\2\s*>|<[^>]*>)")
_CODE_IN_MARKDOWN = re.compile(r"(?s)(```.*?```|`[^`\n]*`)")


def minus(text: str) -> str:
    """Text with minus signs in its numbers."""
    return _HYPHEN.sub("−", text)


def minus_in_html(text: str) -> str:
    """HTML with minus signs in what is shown of it; tags, scripts, styles and code stay."""
    found, end = [], 0
    for kept in _CODE_IN_HTML.finditer(text):
        found += [minus(text[end : kept.start()]), kept[0]]
        end = kept.end()
    return "".join([*found, minus(text[end:])])


def minus_in_markdown(text: str) -> str:
    """Markdown with minus signs; code, and what :func:`minus_in_html` leaves, stays."""
    parts = _CODE_IN_MARKDOWN.split(text)
    parts[::2] = map(minus_in_html, parts[::2])
    return "".join(parts)
