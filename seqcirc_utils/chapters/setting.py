"""What a chapter measures with: its parameters, the model, prompts, and what others found."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from seqcirc_utils.ablation.replay import Activations, mean_activations
from seqcirc_utils.chapters.findings import Findings
from seqcirc_utils.models import loading
from seqcirc_utils.models.loading import Model
from seqcirc_utils.prompts import drawing, scores
from seqcirc_utils.prompts.prompts import Prompts, PromptSets

F = TypeVar("F", bound=Findings)


class Setting:
    """One run of a chapter: parameters by name, and what is made from them when it is asked for.

    Args:
        parameters: All of the stage's, checked.
        checkpoints: Path, without its end, of files that interrupted work continues from.
        read: Gives the findings of another chapter (and task).
        model: A loaded model; from the parameters when ``None``.
        made: Gives the directory with another stage's results (of a task), made first if need be.
        current: Tells whether the results that a record is of are whole, and made by the present
            version; all are taken to be when ``None``.
    """

    def __init__(
        self,
        parameters: Mapping[str, Any],
        checkpoints: Path | None = None,
        read: Callable[[type[Findings], str | None], Any] | None = None,
        model: Model | None = None,
        made: Callable[[str, str | None], Path] | None = None,
        current: Callable[[Path], bool] | None = None,
    ) -> None:
        self.parameters = parameters
        self._checkpoints, self._read, self._made = checkpoints, read, made
        self._current = current
        self._sets: dict[str, PromptSets] = {}
        self._means: dict[str, Activations] = {}
        if model is not None:
            self.model = model

    def __getitem__(self, name: str) -> Any:
        """A parameter's value."""
        return self.parameters[name]

    @cached_property
    def model(self) -> Model:
        """The model, loaded at first use."""
        chosen = {k: self[k] for k in ("device", "dtype", "prepend") if k in self.parameters}
        return loading.load(self["model"], **chosen)

    def draw(self, seed: int, task: str | None = None) -> PromptSets:
        """The prompt sets that a seed draws for a task (its own when ``None``)."""
        keep = scores.paper_filter(self.model) if self.parameters.get("paper_filter") else None
        return drawing.prompt_sets(
            self.model,
            task or self["task"],
            n_prompts=self["n_prompts"],
            n_means=self["n_means"],
            seed=seed,
            templates=self["templates"],
            keep=keep,
        )

    def sets(self, task: str | None = None) -> PromptSets:
        """The run's own prompt sets."""
        task = task or self["task"]
        if task not in self._sets:
            self._sets[task] = self.draw(self["seed"], task)
        return self._sets[task]

    def searched(self, discovery: Prompts) -> Prompts:
        """Those discovery prompts that circuits are searched on: the first ``n_discovery``."""
        return discovery[range(min(self["n_discovery"], len(discovery)))]

    def tally(self, task: str | None = None) -> str:
        """How many evaluation prompts each template got."""
        return drawing.tally(self["templates"], self.sets(task).evaluation)

    def means(self, task: str | None = None) -> Activations:
        """What every component writes on average over the corrupted prompts."""
        task = task or self["task"]
        if task not in self._means:
            self._means[task] = mean_activations(self.model, self.sets(task).means)
        return self._means[task]

    @property
    def directory(self) -> Path:
        """Where the results of all tasks of this model are, or those of the chapter's own."""
        assert self._checkpoints is not None, "this setting keeps nothing"
        return self._checkpoints.parent

    def checkpoint(self, suffix: str) -> Path | None:
        """A file that interrupted work continues from; none where nothing is kept."""
        return self._checkpoints and self._checkpoints.with_name(
            f"{self._checkpoints.name}.{suffix}"
        )

    def read(self, kind: type[F], task: str | None = None) -> F:
        """What another chapter found, made first when it is missing or outdated.

        Raises:
            UserError: for a chapter that this one does not need, or one that fails.
            CannotDo: if it was skipped, since the model cannot do the task.
        """
        assert self._read is not None, "this setting knows no other chapter"
        return self._read(kind, task)

    def current(self, record: Path) -> bool:
        """Whether the results that a record is of are whole, and made by the present version."""
        return self._current is None or self._current(record)

    def made(self, stage: str, task: str | None = None) -> Path:
        """The directory with another stage's results, made first when missing or outdated.

        Raises:
            UserError: as :meth:`read` does.
        """
        assert self._made is not None, "this setting knows no other stage"
        return self._made(stage, task)
