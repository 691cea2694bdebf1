"""A folder that can be kept and cited: site, results, notebooks, environment, and what they are.

Its results can be read back: the book is made from them without a model.
"""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from seqcirc_utils import store
from seqcirc_utils.errors import UserError
from seqcirc_utils.publishing import building
from seqcirc_utils.versions import versions
from seqcirc_utils.workflow import records
from seqcirc_utils.workflow.parameters import check
from seqcirc_utils.workflow.planning import Job, Plan, read_plan

FORMAT = 1
"""Of ``release.json``; another one is not read."""
SUMS = "SHA256SUMS"
_DOCUMENTS = ("CITATION.cff", "LICENSE", "README.md")
_ENVIRONMENT = ("requirements.lock", "environment.yml", "pyproject.toml")
_PARTS = {
    "site/": "The book as web pages: open site/index.html.",
    "results/": "All results as CSV, JSON and npz, with the record of each run.",
    "notebooks/": "The notebooks that made them.",
    "environment/": "Exact versions of everything.",
    "params/": "The parameters of the run.",
}


def write(plan: Plan) -> Path:
    """Write ``_build/release`` from the built book and its results; whole or not at all.

    Raises:
        UserError: where there is no book, or results that are missing or outdated.
    """
    build, site = store.ROOT / "_build", store.ROOT / "_build" / "html"
    _check(plan, f"{plan.results} cannot be released: run `make book` with these parameters first")
    if not (site / "index.html").is_file():
        raise UserError("there is no book in _build/html: run `make book` first.")
    if not building.shows(plan):
        raise UserError("the book in _build/html is of other results: run `make book` with these.")
    paper = build / "book.pdf"
    if old := paper.is_file() and paper.stat().st_mtime < (site / "index.html").stat().st_mtime:
        print("_build/book.pdf is older than the book: it is left out.", file=sys.stderr)
    half = Path(tempfile.mkdtemp(prefix=".release-", dir=build))
    try:
        shutil.copytree(site, half / "site", ignore=shutil.ignore_patterns(".buildinfo"))
        _copy_results(store.ROOT / plan.results, half / plan.results)
        _copy(half / "notebooks", *(store.ROOT / "notebooks").glob("*.ipynb"))
        _copy(half / "environment", *(store.ROOT / name for name in _ENVIRONMENT))
        _copy(half / "params", plan.file)
        _copy(half, *(store.ROOT / name for name in _DOCUMENTS))
        if paper.is_file() and not old:
            _copy(half, paper)
        told = [store.read_json(job.record) for job in plan.jobs()]
        about = {
            "format": FORMAT,
            "params": f"params/{plan.file.name}",
            "model": plan.model,
            "version": versions()["seqcirc_utils"],
            "commit": records.commit(),
            "date": max(str(record["timestamp"]) for record in told)[:10],
        }
        store.write_json(half / "release.json", about)
        for name, content in _metadata(half, about).items():
            store.write_json(half / name, content)
        lines = [f"{store.sha256(path)}  {name}\n" for name, path in _files(half)]
        store.write_text(half / SUMS, "".join(lines))
        target = build / "release"
        shutil.rmtree(target, ignore_errors=True)
        os.chmod(half, 0o755)
        os.replace(half, target)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return target


def read(folder: Path) -> Plan:
    """Put a release's results among this project's, and return their plan.

    Raises:
        UserError: for a folder that is no release, is damaged, was made by other sources, or whose
            results would take the place of others.
    """
    about = _about(folder)
    sums = _sums(folder)
    there = dict(_files(folder))
    for name in sorted(sums.keys() - there.keys()):
        raise UserError(f"{folder} is not whole: {name} is missing. Get it again.")
    for name, digest in sums.items():
        if store.sha256(there[name]) != digest:
            raise UserError(f"{folder} is damaged: {name} has another SHA-256. Get it again.")
    plan = read_plan(folder / about["params"], about["model"])
    source, target = folder / plan.results, store.ROOT / plan.results
    unlisted = {n for n in there if n.startswith(f"{plan.results}/")} - sums.keys()
    for name in sorted(unlisted):
        raise UserError(f"{folder} is damaged: {name} is not in {SUMS}. Get it again.")
    fresh = not target.exists()
    if fresh:
        _copy_results(source, target)
    elif any(_digest(target / n) != store.sha256(path) for n, path in _files(source)):
        raise UserError(f"{plan.results} holds other results: move them away, and start again.")
    made_by = f"version {about['version']}, commit {about['commit'] or 'unknown'}"
    try:
        _check(plan, f"the results in {folder}, made by {made_by}, do not fit these sources")
    except UserError:
        if fresh:
            shutil.rmtree(target)
        raise
    return plan


def _check(plan: Plan, why: str) -> None:
    """Refuse results that are missing, outdated, or of other parameters.

    Raises:
        UserError: for the first of them.
    """
    for job in plan.jobs():
        if not job.record.is_file():
            raise UserError(f"{why}: {job.name} is missing.")
        if not job.is_current():
            raise UserError(f"{why}: {job.name} is {_reason(job)}.")


def _reason(job: Job) -> str:
    told = store.read_json(job.record)
    made, used, here = told.get("parameters", {}), told.get("versions", {}), versions()
    wanted = check(job.stage, job.plan.parameters(job.stage, job.task))
    other = [k for k, v in wanted.items() if k != "results" and k in made and made[k] != v]
    moved = [f"{k} {used[k]}, here {v}" for k, v in here.items() if used.get(k, v) != v]
    if other:
        return f"of another {', '.join(other)}"
    return f"of other versions ({'; '.join(moved)})" if moved else "of other sources, or changed"


def _about(folder: Path) -> dict[str, Any]:
    """What a release says of itself."""
    if not (folder / "release.json").is_file():
        raise UserError(
            f"{folder} is no release: it has no release.json. `make release` makes one."
        )
    about = store.read_json(folder / "release.json")
    if about.get("format") != FORMAT:
        raise UserError(
            f"{folder} has format {about.get('format')!r}, and this version reads {FORMAT}: use "
            f"the version that made it ({about.get('version', 'unknown')})."
        )
    if not re.fullmatch(r"params/[^/]+", str(about.get("params"))):
        raise UserError(f"{folder} is damaged: release.json names no parameters. Get it again.")
    return about


def _sums(folder: Path) -> dict[str, str]:
    """Names below the folder to their SHA-256."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError):
        raise UserError(f"{folder} is damaged: {SUMS} cannot be read. Get it again.") from None


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """All files below a folder by their names there, but for the list of their sums."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != SUMS:
            yield name, path


def _digest(path: Path) -> str:
    return store.sha256(path) if path.is_file() else ""


def _copy(target: Path, *files: Path) -> None:
    target.mkdir(exist_ok=True)
    for file in files:
        shutil.copyfile(file, target / file.name)


def _copy_results(source: Path, target: Path) -> None:
    """Copy results without what only a run needs: logs, locks, records that count no longer."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*", "*.log"))


def _metadata(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What the folder holds, for archives: an RO-Crate, CodeMeta, and a deposit's form."""
    cited = yaml.safe_load((store.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = cited["preferred-citation"]
    arxiv = next(i["value"] for i in paper["identifiers"]).removeprefix("arXiv:")
    config = yaml.safe_load((store.ROOT / "_config.yml").read_text(encoding="utf-8"))
    url = config.get("repository", {}).get("url", "")
    licence = f"https://spdx.org/licenses/{cited['license']}"
    names = [author["name"] for author in cited["authors"]]
    text = " ".join(cited["abstract"].split())
    own = {"name": cited["title"], "description": text, "version": about["version"]}
    own |= {"keywords": cited["keywords"]}
    about_paper = {"@id": f"https://arxiv.org/abs/{arxiv}", "@type": "ScholarlyArticle"}
    about_paper |= {"name": paper["title"]}
    authors = [
        {"@id": f"#author-{i}", "@type": "Organization", "name": n} for i, n in enumerate(names)
    ]
    parts = [
        {"@id": k, "@type": "Dataset", "name": k[:-1], "description": v} for k, v in _PARTS.items()
    ]
    parts += [
        {"@id": p.name, "@type": "File", "name": p.name, "contentSize": str(p.stat().st_size)}
        for p in sorted(folder.iterdir())
        if p.is_file()
    ]
    root = {"@id": "./", "@type": "Dataset", **own, "datePublished": about["date"]}
    root |= {"license": {"@id": licence}, "author": [{"@id": a["@id"]} for a in authors]}
    root |= {"hasPart": [{"@id": p["@id"]} for p in parts]}
    root |= {"citation": {"@id": about_paper["@id"]}}
    crate = "https://w3id.org/ro/crate/1.1"
    itself = {"@id": "ro-crate-metadata.json", "@type": "CreativeWork"}
    itself |= {"conformsTo": {"@id": crate}, "about": {"@id": "./"}}
    right = {"@id": licence, "@type": "CreativeWork", "name": f"{cited['license']} License"}
    right |= {"description": "See LICENSE. The models have licences of their own."}
    codemeta = {
        "@context": "https://doi.org/10.5063/schema/codemeta-2.0",
        "@type": "SoftwareSourceCode",
        **own,
        "license": licence,
        "author": [{"@type": "Organization", "name": name} for name in names],
        "programmingLanguage": "Python",
        "dateModified": about["date"],
        "referencePublication": about_paper["@id"],
    } | ({"codeRepository": url} if url else {})
    deposit = {
        "title": own["name"],
        "description": text,
        "version": own["version"],
        "creators": [{"name": name} for name in names],
        "upload_type": "software",
        "license": cited["license"].lower(),
        "keywords": own["keywords"],
        "related_identifiers": [{"identifier": f"arXiv:{arxiv}", "relation": "isSupplementTo"}],
    }
    graph = [itself, root, *parts, *authors, about_paper, right]
    return {
        "ro-crate-metadata.json": {"@context": f"{crate}/context", "@graph": graph},
        "codemeta.json": codemeta,
        ".zenodo.json": deposit,
    }
