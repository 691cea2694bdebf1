"""From executed notebooks to the book: titles, links to the glossary, data, provenance, HTML."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
import yaml

from seqcirc_utils import models, stages, store
from seqcirc_utils.errors import UserError
from seqcirc_utils.execution import clean
from seqcirc_utils.plan import DISCOVERY, Job, Plan, with_needs
from seqcirc_utils.runs import skipped
from seqcirc_utils.tasks import TASKS


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
    texts[target / "costs.md"] = costs(plan).encode()
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
    rows = [_row([name, value]) for name, value in given.items() if name != "results"]
    names = _indexed(job)
    index = [f"```{{index}} {', '.join(names)}", "```", ""] if names else []
    return "\n".join(
        [
            *index,
            "## Data and parameters",
            "",
            f"What the figures and tables of this page show, as files: {links}." if data else "",
            "The page itself is a notebook, which the button at the top gives. [](/rerun.md) tells",
            "how to run it with other values than these:",
            "",
            ":::{dropdown} Parameters of this run",
            "| name | value |",
            "|---|---|",
            *rows,
            ":::",
        ]
    )


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
            cell.source = _link_terms(cell.source, terms, left)
    executed.cells = _joined(executed.cells)
    footer = nbformat.v4.new_markdown_cell(_footer(job, data), id="data-and-parameters")
    executed.cells.append(footer)
    return nbformat.writes(executed) + "\n"


def provenance(plan: Plan) -> str:
    """Return the page that tells how all results were made.

    Raises:
        UserError: for a run whose record is missing.
    """
    records = [store.read_json(job.record) for job in plan.jobs()]
    lines = ["# Provenance", "", "How every result of this book was made."]
    lines += ["", "## Runs", "", "| stage | task | seconds | CPU seconds | prompts | seed |"]
    lines += ["|---|---|---:|---:|---:|---:|"]
    for record in records:
        prompts = record.get("n_prompts", record["parameters"].get("n_prompts", ""))
        cells = [record["stage"], record["task"] or "all", record["seconds"]]
        lines.append(_row([*cells, record.get("cpu_seconds", ""), prompts, record["seed"]]))
    for name, label in (("seconds", "stages one after the other"), ("cpu_seconds", "CPU time")):
        minutes = sum(record.get(name, 0) for record in records) / 60
        lines += ["", f"In all, {label}: {minutes:.0f} min."]
    lines += _discovery_costs(plan)
    facts = next((r["model"] for r in records if isinstance(r.get("model"), dict)), {})
    lines += _table("Model", {"name": plan.model} | facts)
    lines += _table("Versions", records[0]["versions"])
    for record in records:
        heading = f"Parameters of {record['stage']}"
        if record["task"]:
            heading += f", {record['task']}"
        lines += _table(heading, record["parameters"])
    return "\n".join(lines) + "\n"


def _discovery_costs(plan: Plan) -> list[str]:
    """Where the longest stage's time goes, as it measured itself."""
    taken = {}
    for job in plan.jobs():
        file = job.record.with_name(f"{DISCOVERY}.json")
        if job.stage == DISCOVERY and file.is_file():
            taken[job.task] = store.read_json(file).get("cpu_seconds", {})
    if not any(taken.values()):
        return []
    parts = dict.fromkeys(part for own in taken.values() for part in own)
    rows = [_row([part, *(own.get(part, "") for own in taken.values())]) for part in parts]
    head = ["| part |" + "".join(f" {task} |" for task in taken), "|---|" + "---:|" * len(taken)]
    return ["", "## CPU seconds of the circuit discovery", "", *head, *rows]


def costs(plan: Plan, n_models: int = 10, n_tasks: int = 10, n_seeds: int = 20) -> str:
    """Return tables of what each stage took, and of what a sweep would take at this rate."""
    import pandas as pd

    rows = []
    for job in plan.jobs():
        # Written by Snakemake, which watches the job from outside: starting it counts.
        file = job.record.with_name(f"{job.stage}.cost.tsv")
        if file.is_file():
            taken = pd.read_csv(file, sep="\t", na_values="-").iloc[0]
            files = [*file.parent.glob(f"{job.stage}.*")]
            files += file.parent.glob("circuit*.json") if job.stage == DISCOVERY else []
            # All tasks together: as if the time grew with their number only.
            more = 1 if job.task else n_tasks / len(plan.tasks)
            row = {"stage": job.stage, "minutes": taken["s"] / 60, "memory": taken["max_rss"] / 1e3}
            row |= {"disk": sum(path.stat().st_size for path in files) / 1e6}
            row |= {"core_hours": max(taken["s"], taken["cpu_time"]) / 3600 * more}
            rows.append(row | {"jobs": n_models * n_seeds * (n_tasks if job.task else 1)})
    if not rows:
        return "These results were made without `make book`: nothing was measured.\n"
    by_stage = pd.DataFrame(rows).groupby("stage")
    mean, most = by_stage.mean(), by_stage["memory"].max()
    lines = ["", "| stage | jobs | minutes | GB of memory, at most | MB on disk |"]
    lines += ["|---|---:|---:|---:|---:|"]
    for name, row in mean.iterrows():
        cells = [name, by_stage.size()[name], f"{row['minutes']:.1f}", f"{most[name]:.1f}"]
        lines.append(_row([*cells, f"{row['disk']:.1f}"]))
    lines += ["", f"{n_models} models × {n_tasks} tasks × {n_seeds} seeds:", ""]
    lines += ["| stages | jobs | core hours | hours on 100 cores | GB on disk |"]
    lines += ["|---|---:|---:|---:|---:|"]
    for title, names in [
        ("up to the circuits", with_needs([DISCOVERY])),
        ("all", tuple(stages.STAGES)),
    ]:
        part = mean[mean.index.isin(names)]
        hours, disk = ((part["jobs"] * part[name]).sum() for name in ("core_hours", "disk"))
        cells = [title, f"{part['jobs'].sum():,.0f}", f"{hours:,.0f}", f"{hours / 100:,.1f}"]
        lines.append(_row([*cells, f"{disk / 1e3:,.1f}"]))
    return "\n".join(lines) + "\n"


def benchmarks() -> str:
    """Return the tables of the benchmarks, from what `make bench` wrote last."""
    file = store.ROOT / "benchmarks" / "results.json"
    if not file.is_file():
        return "None were run: `make bench` does.\n"
    found = store.read_json(file)
    lines = []
    for key in ("searches", "growth", "memory"):
        rows = found.pop(key)
        if not rows:
            continue
        # One column per case: there are more measures than cases.
        lines += ["", f"## {key.capitalize()}", ""]
        lines += ["| measure |" + " case |" * len(rows), "|---|" + "---:|" * len(rows)]
        lines += [_row([name, *(_short(row[name]) for row in rows)]) for name in rows[0]]
    lines += _table("Machine", found["machine"] | found["versions"])
    return "\n".join(lines) + "\n"


def _short(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return value


def _table(heading: str, entries: Mapping[str, Any]) -> list[str]:
    rows = [_row([name, value]) for name, value in entries.items()]
    return ["", f"## {heading}", "", "| name | value |", "|---|---|", *rows]


def _row(cells: list[Any]) -> str:
    texts = [str(c) for c in cells]
    first = texts[0].replace("|", r"\|")
    rest = [f"`{text}`".replace("|", r"\|") if text else "" for text in texts[1:]]
    return f"| {' | '.join([first, *rest])} |"


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


def _files(toc: Any) -> list[str]:
    if isinstance(toc, dict):
        own = [toc[key] for key in ("root", "file") if key in toc]
        return own + [file for value in toc.values() for file in _files(value)]
    return [file for item in toc for file in _files(item)] if isinstance(toc, list) else []


@contextlib.contextmanager
def _whole_build(folder: Path) -> Iterator[None]:
    """Keep Sphinx, which goes by dates, from trusting half a build or passing over a change."""
    build = store.ROOT / "_build"
    marker = build / ".sources.json"  # what the last build that ended was made of
    sources = {str(f): models.sha256(f) for f in folder.rglob("*") if f.is_file()}
    try:
        before = store.read_json(marker)
        if marker.stat().st_mtime > time.time():
            raise UserError("built in the future")
        for file, digest in sources.items():
            if before.get(file) != digest:
                os.utime(file)
    except UserError:
        for part in ("html", ".doctrees"):
            shutil.rmtree(build / part, ignore_errors=True)
    marker.unlink(missing_ok=True)
    yield
    store.write_json(marker, sources)


def _built_toc() -> Path:
    own = store.ROOT / "book" / "runs" / "_toc.yml"
    return own if own.is_file() else store.ROOT / "book" / "_toc.yml"


def jupyter_book(output: Path, *options: str) -> list[str]:
    """Return the command that builds the published pages below a directory."""
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    command += [str(store.ROOT / "book"), *options, "--path-output", str(output)]
    command += ["--toc", str(_built_toc())]
    config = store.ROOT / "_config.yml"
    return command + (["--config", str(config)] if config.is_file() else [])


def build() -> Path:
    """Build the published pages into ``_build/html``; warnings are errors.

    Raises:
        UserError: for a page that is missing or a build that warns.
    """
    folder, toc = store.ROOT / "book", _built_toc()
    with _whole_build(folder):
        if subprocess.run(
            jupyter_book(store.ROOT, "-n", "-W", "--keep-going"), cwd=store.ROOT
        ).returncode:
            raise UserError("the book was not built without warnings: see the lines above.")
    html = store.ROOT / "_build" / "html"
    pages = [re.sub(r"\.(md|ipynb|rst)$", "", f) for f in _files(yaml.safe_load(toc.read_bytes()))]
    missing = [page for page in pages if not (html / f"{page}.html").is_file()]
    if missing:
        raise UserError(f"the built book lacks the pages {', '.join(missing)}.")
    index = html / "index.html"
    print(f"The book is in {index}: open it, or run make serve")
    return index
