"""Parquet files: columns of numbers or words, all of it in the file itself."""

import importlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from diffplan.datasets.importers.recording import MOST_COMPRESSED
from diffplan.datasets.importers.tracks import agent_name
from diffplan.extras import load_extra

_DAMAGED = (OSError, ValueError, NotImplementedError)  # pyarrow's errors of damaged files are of these kinds


def open_parquet(path: Path) -> Any:
    """A ``pyarrow.parquet.ParquetFile``.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: no parquet file, a damaged one, or one that names other files for its columns.
    """
    parquet = load_extra("pyarrow.parquet", "parquet", "parquet files need pyarrow")
    try:
        file = parquet.ParquetFile(path)
    except _DAMAGED as error:
        raise ValueError(f"{path} cannot be read as parquet ({error}); copy or export the file anew.") from error
    facts = file.metadata
    for group in range(facts.num_row_groups):
        for column in range(facts.num_columns):
            elsewhere = facts.row_group(group).column(column).file_path
            if elsewhere:
                raise ValueError(f"{path} says that its columns are in {elsewhere!r}; write the data into one file.")
    return file


def read_parquet(path: Path, names: list[str] | None = None, words: Collection[str] = ()) -> dict[str, np.ndarray]:
    """The columns (or those of these names): numbers as float64, lists of numbers as [rows, width], others as words.

    Those of ``words`` are words whatever they hold, "" where there is nothing.
    """
    file = open_parquet(path)
    missing = sorted(set(names or ()) - set(file.schema_arrow.names))
    if missing:
        raise ValueError(f"{path} has no columns {missing}; it has {file.schema_arrow.names}.")
    size = 8 * file.metadata.num_rows * len(names or file.schema_arrow.names)
    if size > MOST_COMPRESSED * path.stat().st_size:
        raise ValueError(
            f"{path} unpacks to {size:,} bytes, which so small a file cannot hold; copy or export it anew."
        )
    try:
        table = file.read(columns=names)
    except _DAMAGED as error:
        raise ValueError(f"{path} ended early or is damaged ({error}); copy or export the file anew.") from error
    nested = importlib.import_module("pyarrow.types").is_nested
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    return {
        name: _names(column) if name in words and not nested(column.type) else _array(path, name, column)
        for name, column in columns.items()
    }


def _names(column: Any) -> np.ndarray:
    return np.array(["" if one is None else agent_name(one) for one in column.to_pylist()])


def _array(path: Path, name: str, column: Any) -> np.ndarray:
    types = importlib.import_module("pyarrow.types")
    kind = column.type
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        widths = {len(one) if one is not None else -1 for one in column}
        if len(widths) != 1 or not (types.is_floating(kind.value_type) or types.is_integer(kind.value_type)):
            raise ValueError(
                f"{path}: column {name!r} has lists of {kind.value_type} of lengths {sorted(widths)[:5]}, expected "
                "numbers and one length; the column is ragged."
            )
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float64).reshape(
            len(column), widths.pop()
        )
    if types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind):
        return np.array([str(one) for one in column.to_pylist()])
    raise ValueError(f"{path}: column {name!r} is {kind}, expected numbers, words or lists of numbers; leave it out.")
