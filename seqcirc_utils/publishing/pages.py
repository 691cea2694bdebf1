"""From executed notebooks to the book: titles, links to the glossary, data, provenance, HTML."""

import re
import shlex
from pathlib import Path
from typing import Any

import nbformat
import yaml

from seqcirc_utils import store
from seqcirc_utils.errors import UserError
from seqcirc_utils.prompts.sequences import TASKS
from seqcirc_utils.publishing import discovery_size, launch, origins
from seqcirc_utils.publishing.architectures import architectures
from seqcirc_utils.publishing.tables import (
    benchmarks,
    costs,
    markdown_row,
    one_header_row,
    paper_size,
    provenance,
    screening,
)
from seqcirc_utils.workflow.execution import clean
from seqcirc_utils.workflow.parameters import declared
from seqcirc_utils.workflow.planning import DISCOVERY, Job, Plan
from seqcirc_utils.workflow.records import skipped


def publish(plan: Plan) -> list[Path]:
    """Copy executed notebooks, data, figures and provenance to ``book/runs``; return what is there.

    Files that would not change are not written, and files of other runs are removed.

    Raises:
        UserError: for a notebook that is missing or holds an error.
    """
    target = store.ROOT / "book" / "runs"
    texts: dict[Path, bytes] = {}
    terms = _terms()
    for job in plan.jobs():
        place = target / (job.task or "")
        data = _data(job)
        texts[place / f"{job.stage}.ipynb"] = _published(job, terms, data).encode()
        texts |= {place / "data" / path.name: path.read_bytes() for path in data}
    figures = [*plan.directory().rglob("figures/*.svg"), *plan.directory().rglob("figures/*.png")]
    for figure in figures:
        if figure.name.startswith("."):  # half written by a process that was killed
            continue
        owner = figure.parent.parent.name
        if owner in plan.tasks:
            texts[target / "figures" / owner / figure.name] = figure.read_bytes()
        elif figure.parent.parent == plan.directory():
            texts[target / "figures" / figure.name] = figure.read_bytes()
    texts[target / "provenance.md"] = provenance(plan).encode()
    texts[target / "benchmarks.md"] = benchmarks().encode()
    texts[target / "architectures.md"] = architectures().encode()
    texts[target / "costs.md"] = costs(plan).encode()
    texts[target / "paper_size.md"] = paper_size().encode()
    texts[target / "screening.md"] = screening().encode()
    texts[target / "discovery_size.md"] = discovery_size.discovery_size().encode()
    if (drawn := store.ROOT / discovery_size.FIGURE).is_file():
        texts[target / drawn.name] = drawn.read_bytes()
    toc = _toc(plan)
    if toc:
        texts[target / "_toc.yml"] = toc.encode()
    for path in sorted(target.rglob("*"), reverse=True):
        if path.is_file() and path not in texts:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    for path, content in texts.items():
        if not path.is_file() or path.read_bytes() != content:
            with store.writing(path) as temporary:
                temporary.write_bytes(content)
    return sorted(texts)


def _data(job: Job) -> list[Path]:
    """Return the files with what a run's page shows, as the run recorded them."""
    names = store.read_json(job.record).get("files", {})
    found = sorted(job.record.parent / name for name in names)
    return [path for path in found if path.suffix in (".csv", ".json", ".npz")]


def _terms() -> list[str]:
    """Return the glossary's entries, the longest first."""
    page = store.ROOT / "book" / "glossary.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    found = re.search(r"(?s):::\{glossary\}\n(.*?)\n:::", text)
    entries = re.findall(r"(?m)^(\S.*)$", found[1]) if found else []
    return sorted(entries, key=len, reverse=True)


_FIXED = re.compile(  # headings, code, roles and links
    r"(?m)(^#.*$|```[\s\S]*?```|\{[\w:]+\}`[^`]*`|`[^`]*`|\[[^\]]*\]\([^)]*\))"
)


def _link_terms(text: str, terms: list[str], left: list[str]) -> str:
    """Link each term to the glossary where it is first used.

    Args:
        text: Markdown; headings, code, roles and links stay as they are.
        terms: All entries, the longest first: a part of a longer term is not linked.
        left: Those not linked yet; what is linked here is taken off.
    """
    if not terms:
        return text
    entries = {term.lower(): term for term in terms}
    words = "|".join(r"\s+".join(map(re.escape, term.split())) for term in terms)

    def link(match: re.Match) -> str:
        term = entries[" ".join(match[1].lower().split())]
        if term not in left:
            return match[0]
        left.remove(term)
        return f"{{term}}`{match[0]} <{term}>`"

    pattern = re.compile(rf"(?<![\w-])({words})s?(?![\w-])", re.IGNORECASE)
    parts = _FIXED.split(text)
    parts[::2] = [pattern.sub(link, part) for part in parts[::2]]
    return "".join(parts)


def _indexed(job: Job) -> list[str]:
    """Return what index and search find on a page: the circuit's parts, or the claims."""
    table = job.record.with_name(f"{job.stage}.csv")
    if skipped(job.record) or not table.is_file():
        return []
    frame = store.read_csv(table)
    if job.stage == DISCOVERY:
        names = frame["component"].astype(str)
        return [f"{'MLP' if name.startswith('mlp') else 'head'} {name}" for name in names]
    return [f"claim {name}" for name in frame["claim"]] if "claim" in frame else []


def _footer(job: Job, data: list[Path]) -> str:
    """What stands below every page made by a notebook: its data and its parameters."""
    links = " · ".join(f"{{download}}`{path.name} <data/{path.name}>`" for path in data)
    given = store.read_json(job.record)["parameters"]
    rows = [markdown_row([name, value]) for name, value in given.items() if name != "results"]
    names = _indexed(job)
    index = [f"```{{index}} {', '.join(names)}", "```", ""] if names else []
    return "\n".join(
        [
            *index,
            "## Data and parameters",
            "",
            f"What the figures and tables of this page show, as files: {links}." if data else "",
            *launch.links(job.stage),
            "The page itself is a notebook, which the button at the top gives. [](/rerun.md) tells",
            "how to run it with other values than these:",
            "",
            f"({origins.parameters_label(job)})=",
            ":::{dropdown} Parameters of this run",
            "| name | value |",
            "|---|---|",
            *rows,
            ":::",
        ]
    )


def _of_this_run(text: str, job: Job) -> str:
    """Text whose commands try something of this page's model and task, not of the defaults."""
    given, known = store.read_json(job.record)["parameters"], declared(job.stage)
    own = "".join(
        f" -r {name} {shlex.quote(given[name])}"
        for name in ("model", "task")
        if name in given and given[name] != known[name].default
    )
    begin = r"(?m)^(.*\bpapermill notebooks/\S+ out\.ipynb)(?= )"
    return re.sub(begin, lambda found: found[1] + own, text)


def _joined(cells: list[Any]) -> list[Any]:
    """Join code cells that show nothing with the code cell that follows: one fold, not four."""
    found: list[Any] = []
    for cell in cells:
        silent = found and found[-1].cell_type == "code" and not found[-1].outputs
        shown = cell.cell_type == "code" and "remove-input" not in cell.metadata.get("tags", [])
        if silent and shown:
            cell.source = f"{found.pop().source}\n\n{cell.source}"
        found.append(cell)
    return found


def _published(job: Job, terms: list[str], data: list[Path]) -> str:
    if not job.notebook.is_file():
        raise UserError(f"{job.notebook} does not exist: run `make book`.")
    try:
        executed = clean(nbformat.read(job.notebook, as_version=4))
    except ValueError:
        raise UserError(f"{job.notebook} is damaged: run `make book`.") from None
    outputs = [o for cell in executed.cells for o in cell.get("outputs", [])]
    tags = [tag for cell in executed.cells for tag in cell.metadata.get("tags", [])]
    for shown in (o.data for o in outputs if "text/html" in o.get("data", {})):
        shown["text/html"] = one_header_row(shown["text/html"])
    if any(o.output_type == "error" for o in outputs) or any("error" in tag for tag in tags):
        raise UserError(f"{job.notebook} holds an error: delete it and run `make book` again.")
    if job.task:
        title = TASKS[job.task].title
        for cell in executed.cells:
            if cell.cell_type == "markdown" and re.search(r"(?m)^# ", cell.source):
                cell.source = re.sub(
                    r"(?m)^# (.*)$", lambda m: f"# {title}: {m[1]}", cell.source, count=1
                )
                break
    left = list(terms)
    for cell in executed.cells:
        if cell.cell_type == "markdown":
            cell.source = _link_terms(_of_this_run(cell.source, job), terms, left)
    origins.note(job, executed.cells, data)
    executed.cells = _joined(executed.cells)
    footer = nbformat.v4.new_markdown_cell(_footer(job, data), id="data-and-parameters")
    executed.cells.append(footer)
    return nbformat.writes(executed) + "\n"


def _committed_toc() -> dict[str, Any]:
    path = store.ROOT / "book" / "_toc.yml"
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it from git.") from None


def _toc(plan: Plan) -> str:
    """Return the table of contents for the plan's tasks; nothing if the committed one serves."""
    toc = _committed_toc()
    tasks, parts, place, pattern = [], [], None, None
    for part in toc.get("parts", []):
        files = [chapter.get("file", "") for chapter in part.get("chapters", [])]
        found = [re.fullmatch(r"runs/([^/]+)/[^/]+", file) for file in files]
        if files and all(found):
            tasks.append(files[0].split("/")[1])
            if pattern is None:
                place, pattern = len(parts), part
        else:
            parts.append(part)
    if pattern is None or tuple(tasks) == plan.tasks:
        return ""
    parts[place:place] = [
        pattern
        | {
            "caption": TASKS[task].title,
            "chapters": [
                chapter | {"file": re.sub(r"^runs/[^/]+/", f"runs/{task}/", chapter["file"])}
                for chapter in pattern["chapters"]
            ],
        }
        for task in plan.tasks
    ]
    return yaml.safe_dump(toc | {"parts": parts}, sort_keys=False, allow_unicode=True)
