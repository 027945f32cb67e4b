"""How commands answer: facts on the terminal or as JSON, pictures in files."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffplan.files import nan_to_none

STILLS, FILMS = (".png", ".svg", ".pdf"), (".mp4", ".gif")


def show(facts: dict[str, Any], as_json: bool = False) -> None:
    """Prints facts, one a line, or as JSON."""
    if as_json:
        print(json.dumps(nan_to_none(facts), indent=2, allow_nan=False))
        return
    for name, value in facts.items():
        print(f"{name:<16} {in_words(value)}")


def in_words(value: Any) -> str:
    """A fact on one line: numbers short, dictionaries as ``a 1, b 2``, those inside them in brackets."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None or (isinstance(value, list) and not value):
        return "none"
    if isinstance(value, list):
        return f"[{', '.join(map(in_words, value))}]"
    if isinstance(value, dict):
        shown = {key: f"({in_words(one)})" if isinstance(one, dict) else in_words(one) for key, one in value.items()}
        return ", ".join(f"{key} {one}" for key, one in shown.items())
    return str(value)


def check_ending(flag: str, path: Path, endings: tuple[str, ...] = STILLS) -> None:
    """Raises ``ValueError`` unless the file ends in one of these; asked before any work starts."""
    if path.suffix.lower() not in endings:
        raise ValueError(f"{flag} {path} ends in {path.suffix!r}; it can be one of {endings}.")
    if path.is_dir():
        raise ValueError(f"{flag} {path} is a folder; name a file in it.")


@contextlib.contextmanager
def waiting(what: str, shown: bool) -> Iterator[None]:
    """Shows that something without countable steps goes on, and for how long it has; then disappears."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(TextColumn(what), BarColumn(), TimeElapsedColumn(), transient=True, disable=not shown) as bar:
        bar.add_task(what, total=None)
        yield
