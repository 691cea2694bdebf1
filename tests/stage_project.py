"""A small project in a temporary directory: the real library, small notebooks in their places."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pytest
import yaml

from seqcirc_utils import store
from seqcirc_utils.workflow import fingerprint, notebook, planning, stages
from seqcirc_utils.workflow.parameters import check

PARAMETERS = """\
model: str = "gpt2"  # the model
{task}
templates: list = ["born"]  # sentences
n_prompts: int = 8  # evaluation prompts
paper_filter: bool = False  # as the paper does
seed: int = 0  # draws everything random
results: str = "results/default"  # where results go"""
TASK = 'task: str = "months"  # what is continued'
TASKS = 'tasks: list = ["digits", "number_words", "months"]  # what is compared'
WORK = {
    "04_circuit_discovery": 'print(run.input("03_patching", "txt").read_text())',
    "06_cross_task": 'for _t in tasks:\n    run.input("03_patching", "txt", _t)\n'
    '    run.input("04_circuit_discovery", "txt", _t)',
}
MORE = {
    "03_patching": "threshold: float = 0.8  # part to keep\ndevice: str = 'auto'  # where\n"
    "prepend: str = 'auto'  # in front",
    "13_across_models": 'compare: list = ["gpt2"]  # models',
}


def write_notebook(root: Path, stage: str, work: str = "", more: str = "") -> Path:
    """Write a stage's notebook; ``work`` stands between begin() and finish()."""
    per_task = stages.STAGES[stage].per_task
    declared = PARAMETERS.format(task=TASK if per_task else TASKS)
    declared += "\n" + (more or MORE.get(stage, ""))
    cell = nbformat.v4.new_code_cell
    book = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell(f"Text.\n\n# Title of {stage}\n\n# Second"),
            cell(declared.strip(), metadata={"tags": ["parameters"]}),
            cell(
                "from seqcirc_utils.workflow import notebook\n\n"
                f'run = notebook.begin("{stage}", globals())'
            ),
            cell(work or WORK.get(stage, "pass")),
            cell(
                "import sys\n\nfrom seqcirc_utils import store\n\n"
                'print("progress bar", file=sys.stderr)\n'
                'store.write_text(run.path("txt"), f"{n_prompts}")\n'
                "run.finish(model={'name': model}, n_prompts=n_prompts)"
            ),
        ],
        metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "x"}},
    )
    path = root / "notebooks" / f"{stage}.ipynb"
    nbformat.write(book, path)
    return path


def make(root: Path, monkeypatch: pytest.MonkeyPatch, real: Sequence[str] = ()) -> Path:
    """Make the project and let this process and its kernels work in it.

    The stages named in ``real`` keep their own notebooks and chapters.
    """
    shutil.copytree(
        store.ROOT / "seqcirc_utils",
        root / "seqcirc_utils",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    # These small notebooks decide by themselves.
    for name in set(stages.STAGES) - set(real):
        (root / "seqcirc_utils" / stages.STAGES[name].chapter).unlink(missing_ok=True)
    monkeypatch.setattr(fingerprint, "_PACKAGE", root / "seqcirc_utils")
    for name in ("params", "profiles"):
        shutil.copytree(store.ROOT / name, root / name)
    for name in ("Snakefile", "_config.yml"):
        shutil.copy(store.ROOT / name, root)
    (root / "notebooks").mkdir()
    (root / "book").mkdir()
    for stage in stages.STAGES:
        if stage in real:
            shutil.copy(stages.notebook(stage), root / "notebooks")
        else:
            write_notebook(root, stage)
    monkeypatch.setattr(store, "ROOT", root)
    monkeypatch.setenv("PYTHONPATH", str(root))
    return root


def parameters(project, **values):
    file = project / "params" / "mine.yml"
    file.write_text(yaml.safe_dump({"model": "gpt2", "tasks": ["months"]} | values))
    return file


def pretend(plan, stage, task=None, cells=()):
    """Write what a run of a stage would have left."""
    job = planning.Job(plan, stage, task)
    cells = [nbformat.v4.new_markdown_cell("# Title\n\ntext"), *cells]
    job.notebook.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), job.notebook)
    run = notebook.Run(stage, check(stage, plan.parameters(stage, task)))
    run.finish(model={"name": "gpt2"})
    return job
