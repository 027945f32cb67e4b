"""What a run tells of itself while it goes on: rows in memory, in ``metrics.jsonl``, and in TensorBoard if asked."""

import json
from numbers import Real
from pathlib import Path
from typing import Any

from diffplan.extras import load_extra
from diffplan.files import atomic_path, plain


class MetricsLog:
    """Rows of plain values, each with its ``step``.

    Args:
        out: folder of the run, in which ``metrics.jsonl`` is written; None keeps the rows in memory only.
        first: the step at which the run goes on; later rows, which a killed run left behind, are dropped. It is
            -1 for a run that begins and whose first row is of step 0.
        tensorboard: also write the numbers as TensorBoard scalars, to ``out/tensorboard``.

    Raises:
        ImportError: TensorBoard is asked for and missing; the message gives the pip command.
    """

    def __init__(self, out: Path | None, first: int = 0, tensorboard: bool = False):
        self.rows: list[dict[str, Any]] = []
        self.path = None if out is None else out / "metrics.jsonl"
        self._writer = summary_writer()(str(out / "tensorboard")) if tensorboard and out is not None else None
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = self.path.read_bytes().splitlines() if self.path.exists() else []
            rows = [row for row in map(_row, lines) if row is not None]  # torn ones: of a full disk or a kill
            self.rows = [row for row in rows if row["step"] <= first]
            with atomic_path(self.path) as temporary:
                temporary.write_text("".join(json.dumps(row, default=plain) + "\n" for row in self.rows))

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row."""
        self.rows.append(row)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(row, default=plain) + "\n")
        if self._writer is not None:
            for name, value in row.items():
                if isinstance(value, Real) and name != "step":
                    self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Ends the TensorBoard files."""
        if self._writer is not None:
            self._writer.close()


def _row(line: bytes) -> dict[str, Any] | None:
    """What a line tells of a step; None where it is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def summary_writer() -> Any:
    """TensorBoard's class for files of scalars. Raises ``ImportError`` with the pip command where it is missing."""
    return load_extra("torch.utils.tensorboard", "track", "TensorBoard's files need tensorboard").SummaryWriter
