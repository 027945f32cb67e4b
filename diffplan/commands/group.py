"""Commands under one name, as in ``diffplan data info``; they are loaded only when one of them is called."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Group:
    """What they are about (the first line is the short form), and the commands by name."""

    text: str
    load: Callable[[], Mapping[str, Any]]
