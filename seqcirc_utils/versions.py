"""Versions of what decides results."""

import contextlib
import functools
import platform
from importlib.metadata import PackageNotFoundError, version

from seqcirc_utils import __version__

_LIBRARIES = "torch transformers tokenizers transformer-lens numpy scipy pandas".split()


@functools.cache
def versions() -> dict[str, str]:
    """Name to version of Python, of the libraries that decide results, and of this package."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found | {"seqcirc_utils": __version__}
