"""The one kind of error a user can cause and mend."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator, MutableMapping


class UserError(ValueError):
    """Something the caller can put right: says what was wrong, what is allowed, what to do."""

    def _render_traceback_(self) -> list[str]:
        """Tell IPython (so Jupyter and papermill too) to print one line, not a traceback."""
        return [f"{type(self).__name__}: {self}"]


class CannotDo(UserError):
    """The model cannot do the task, so there is nothing to explain: the stage is skipped."""


@contextlib.contextmanager
def section(missing: MutableMapping[str, str], name: str) -> Iterator[None]:
    """What is refused inside ends only itself: the reason goes to ``missing[name]``."""
    try:
        yield
    except UserError as error:
        missing[name] = str(error)


def unknown(kind: str, name: object, allowed: Iterable[str], hint: str = "") -> UserError:
    """The error for a name that is not among the allowed ones, with the nearest of them."""
    allowed = sorted(map(str, allowed))
    near = difflib.get_close_matches(str(name), allowed, n=1)
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    return UserError(f"unknown {kind} {name!r}{guess}: allowed are {', '.join(allowed)}{hint}.")
