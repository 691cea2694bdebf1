"""Running a stage's notebook with papermill."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqcirc_utils import store
from seqcirc_utils.errors import CannotDo, UserError
from seqcirc_utils.typography import minus, minus_in_html, minus_in_markdown
from seqcirc_utils.workflow import records
from seqcirc_utils.workflow.parameters import check
from seqcirc_utils.workflow.stages import directory, notebook, upstream

_START = 600
"""Seconds that a kernel may take to start: imports from a busy network disk are slow."""
_SHOWN = {
    "text/html": minus_in_html,
    "text/markdown": minus_in_markdown,
    "application/papermill.record/text/plain": minus,  # what pages quote from this one
}
"""What people read of an output, and what gives its numbers minus signs."""


def _why(error: Exception) -> str:
    """The first line of what ended a notebook, with the kind of error where it is not ours."""
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    if isinstance(error, DeadKernelError):
        return "its Python process died, mostly for want of memory"
    name, said = type(error).__name__, str(error)
    if isinstance(error, PapermillExecutionError):
        name, said = error.ename, str(error.evalue)
    first = next(iter(said.strip().splitlines()), "")
    return first if name == UserError.__name__ else f"{name}: {first}"


def execute(
    stage: str, parameters: Mapping[str, Any], output: Path | str, progress: bool = True
) -> Path:
    """Run a stage's notebook with parameters and write the executed notebook to ``output``.

    ``output`` is written whole or not at all: an old one is removed when the run fails, and the
    failed notebook is kept beside it as ``<output>.failed.ipynb``. A stage whose model cannot do
    the task is no failure: the notebook ends there with the reason, which the record holds as
    ``skipped``.

    Args:
        stage: The stage.
        parameters: Those that differ from the defaults.
        output: Path of the executed notebook.
        progress: Show progress, the kernel's own included, on stderr.

    Raises:
        UserError: before any compute as :func:`check` does, afterwards if the notebook failed.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    given = check(stage, parameters)
    output = Path(output).absolute()
    failed = output.with_suffix(".failed.ipynb")
    reason = ""
    with store.writing(output) as temporary:
        try:
            try:
                papermill.execute_notebook(
                    str(notebook(stage)).replace("{", "{{").replace("}", "}}"),
                    str(temporary).replace("{", "{{").replace("}", "}}"),
                    parameters=dict(parameters),
                    kernel_name="python3",
                    kernel_manager_class=_own_kernel(),
                    language="python",
                    cwd=str(store.ROOT),
                    start_timeout=_START,
                    progress_bar=progress,
                    stderr_file=sys.stderr if progress else None,
                )
            except PapermillExecutionError as error:
                if error.ename != CannotDo.__name__:
                    raise
                reason = str(error.evalue)
            book = nbformat.read(temporary, as_version=4)
            nbformat.write(clean(_cut(book, reason) if reason else book), temporary)
        except BaseException as error:
            output.unlink(missing_ok=True)
            if not isinstance(error, Exception):
                raise
            kept = "no cell was run"
            if temporary.is_file() and temporary.stat().st_size:
                os.replace(temporary, failed)
                failed.chmod(0o644)
                kept = f"see {failed}"
            # What the notebook says of itself needs no second traceback.
            known = isinstance(error, DeadKernelError | PapermillExecutionError)
            cause = None if known else error
            raise UserError(f"{stage} failed: {_why(error)} ({kept})") from cause
    failed.unlink(missing_ok=True)
    if reason:
        record_skipped(stage, given, reason)
    return output


def _own_kernel() -> type:
    """Return a kernel manager whose python3 is this interpreter, whatever Jupyter has installed."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default

    class OwnKernel(AsyncKernelManager):
        async def start_kernel(self, **given: Any) -> None:  # pyrefly: ignore
            """Start it without the user's own start-up files, configuration and history."""
            self._ipython = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            own = given.pop("env", os.environ) | {"IPYTHONDIR": self._ipython.name}
            await super().start_kernel(**given, env=own)

        @default("kernel_spec_manager")
        def _no_installed_kernels(self) -> KernelSpecManager:
            return KernelSpecManager(kernel_dirs=[], ensure_native_kernel=True)

    return OwnKernel


def _cut(book: Any, reason: str) -> Any:
    """Return a notebook up to the cell that raised, with the reason in place of the error."""
    import nbformat

    cells = []
    for cell in book.cells:
        if any("error" in tag for tag in cell.metadata.get("tags", [])):  # papermill's own notes
            continue
        cells.append(cell)
        if any(output.output_type == "error" for output in cell.get("outputs", [])):
            cell.outputs = [o for o in cell.outputs if o.output_type != "error"]
            break
    said = f":::{{admonition}} Skipped\n:class: warning\n{reason}\n:::"
    book.cells = [*cells, nbformat.v4.new_markdown_cell(said, id="skipped")]
    return book


def record_skipped(stage: str, given: dict[str, Any], reason: str) -> None:
    """Write the record that a notebook did not come to write: its model cannot do the task."""
    where = directory(given["results"], given["model"], given.get("task"))
    inputs = {}
    for need, task in upstream(stage, [given["task"]] if "task" in given else given["tasks"]):
        record = directory(given["results"], given["model"], task) / f"{need}.run.json"
        with contextlib.suppress(UserError):
            inputs[records.relative(record, where)] = store.read_json(record)["library"]
    records.write(stage, given, where, {"skipped": reason, "inputs": inputs})
    print(f"{stage} of {given.get('task') or 'all tasks'} is skipped: {reason}", file=sys.stderr)


def clean(book: Any) -> Any:
    """Return an executed notebook as it is kept.

    What differs from run to run is left out (progress bars, times), and numbers that people read
    get minus signs.
    """
    book.metadata.pop("papermill", None)
    book.metadata["kernelspec"] = {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }
    book.metadata["language_info"] = {"name": "python"}
    for cell in book.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if not (output.output_type == "stream" and output.name == "stderr")
            ]
            for output in cell.outputs:
                plain = output.get("data", {}).get("text/plain")
                if plain is not None:
                    output.data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", plain)
                for kind, mended in _SHOWN.items():
                    if kind in output.get("data", {}):
                        output.data[kind] = mended(output.data[kind])
    return book
