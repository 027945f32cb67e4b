"""Packages that only parts of diffplan need; where one is missing, the error says how to install it."""

import importlib
from typing import Any


def how_to_install(extra: str) -> str:
    """What brings an extra: the pip command, and that of a clone."""
    return f'pip install "diffplan[{extra}]" (in a clone of diffplan: pip install -e ".[{extra}]")'


def load_extra(module: str, extra: str, need: str) -> Any:
    """A module of an optional package.

    Args:
        module: its full name.
        extra: what brings it, see ``how_to_install``.
        need: who needs which package, in words, e.g. ``"HDF5 files need h5py"``.

    Raises:
        ImportError: it is not installed; the message gives the pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"{need} ({error}); install it with: {how_to_install(extra)}") from error
