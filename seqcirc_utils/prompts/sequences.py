"""The sequences of the tasks and the sentences around them; no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One sequence. ``members`` stand in order; ``title`` is what headings call the task."""

    title: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """One sentence form: ``<filler> <verb> in <member>.``"""

    verb: str
    fillers: tuple[str, ...]


TASKS: dict[str, Task] = {
    "digits": Task("Digits", tuple(str(i) for i in range(1, 13))),
    "number_words": Task(
        "Number words",
        ("one", "two", "three", "four", "five", "six")
        + ("seven", "eight", "nine", "ten", "eleven", "twelve"),
    ),
    "months": Task(
        "Months",
        ("January", "February", "March", "April", "May", "June")
        + ("July", "August", "September", "October", "November", "December"),
    ),
    # Beyond the paper's three; a tokenizer need not hold each word as one token.
    "days": Task(
        "Days",
        ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    ),
    "letters": Task("Letters", tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")),
    "spanish_number_words": Task(
        "Spanish number words",
        ("uno", "dos", "tres", "cuatro", "cinco", "seis")
        + ("siete", "ocho", "nueve", "diez", "once", "doce"),
    ),
    "spanish_months": Task(
        "Spanish months",
        ("enero", "febrero", "marzo", "abril", "mayo", "junio")
        + ("julio", "agosto", "septiembre", "octubre", "noviembre", "diciembre"),
    ),
    "french_number_words": Task(
        "French number words",
        ("un", "deux", "trois", "quatre", "cinq", "six")
        + ("sept", "huit", "neuf", "dix", "onze", "douze"),
    ),
    "french_months": Task(
        "French months",
        ("janvier", "février", "mars", "avril", "mai", "juin")
        + ("juillet", "août", "septembre", "octobre", "novembre", "décembre"),
    ),
}

_NAMES = tuple(
    "Adam Alex Alice Andrew Anna Anne Arthur Ben Bill Bob Carl Charles Chris Daniel David Donald "
    "Edward Elizabeth Emily Frank Fred George Henry Jack Jacob James Jane Jean Jim John Joseph "
    "Lewis Louis Luke Maria Mark Martin Mary Matt Matthew Max Michael Neil Nick Paul Peter Ray "
    "Richard Rob Robert Rose Sam Samuel Sarah Scott Simon Stephen Thomas Tim Tom Victor William "
    "Kate Laura Linda Susan".split()
)
_THINGS = tuple(
    "Ball Bell Book Box Bus Camera Cap Card Car Cart Chain Flag Gate Gold Key Letter Light Lock "
    "Map Mask Net Note Paper Pen Phone Pin Plate Radio Ring Rock Rod Salt Shell Star Stone Table "
    "Tool Top Train Tree Tube Van Wall Watch Wind Window Wire Wood Desk Hat Lamp Coat".split()
)

TEMPLATES: dict[str, Template] = {
    "born": Template("born", _NAMES),
    "lost": Template("lost", _THINGS),
    "done": Template("done", _THINGS),
}

MIN_FILLERS = 12
"""A template needs this many single-token fillers, or its prompts would be all alike."""
