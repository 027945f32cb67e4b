"""How benchmarks write figures down: a list in docs/results/<topic>.json, of which make_results.py makes a page."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from diffplan.files import read_json, write_json

RESULTS = Path(__file__).parents[1] / "docs" / "results"


@dataclass(frozen=True)
class Figure:
    """One measured number with its 95 % interval, how it was measured, and the same for what it is compared with."""

    figure: str
    value: float
    low: float
    high: float
    unit: str
    seeds: int
    episodes: int
    command: str
    baselines: dict[str, "Figure"] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: dict) -> Self:
        return cls(**data | {"baselines": {name: cls.from_dict(one) for name, one in data["baselines"].items()}})


def record(path: str | Path, figures: Sequence[Figure]) -> None:
    """Writes ``figures`` to ``path``; figures of other names that are there already stay."""
    merged = {one.figure: one for one in (*read(path), *figures)}
    write_json(path, [dataclasses.asdict(one) for one in merged.values()])
    print(json.dumps([dataclasses.asdict(one) for one in figures], indent=2))
    print("To show these in docs/results.md: python scripts/make_results.py")


def read(path: str | Path) -> list[Figure]:
    """The figures in a file; none where there is no file."""
    return [Figure.from_dict(one) for one in read_json(path)] if Path(path).exists() else []
