"""What one robot sees of its partners, as a mapping that compares by its numbers."""

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float


class Sensed(Mapping[str, np.ndarray]):
    """{partner: its observation} of the partners that one robot sees; equal when all numbers are, NaN with NaN."""

    def __init__(self, names: list[str], rows: Float[np.ndarray, "partners O"]):
        self._names, self._rows = names, rows

    def __getitem__(self, name: str) -> Float[np.ndarray, "O"]:
        if name not in self._names:
            raise KeyError(name)
        return np.asarray(self._rows[self._names.index(name)])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sensed):
            return NotImplemented
        return self._names == other._names and np.array_equal(self._rows, other._rows, equal_nan=True)

    def __repr__(self) -> str:
        return f"Sensed({dict(self)})"
