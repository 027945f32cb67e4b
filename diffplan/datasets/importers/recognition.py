"""Which format a path looks like: so that a wrong guess is answered with the likely right one."""

from pathlib import Path


def likely_format(path: Path) -> str | None:
    """The name of the format that a file or folder seems to be in, ``None`` when it seems to be in none."""
    if path.is_file():
        return _of_file(path)
    if not path.is_dir():
        return None
    names = {child.name for child in path.iterdir()}
    if "manifest.json" in names:
        return "store"
    if "manifest.ocdbt" in names or any(path.glob("*/manifest.ocdbt")):
        return "vault"
    if "metadata.json" in names or "main_data.hdf5" in names or (path / "data" / "main_data.hdf5").exists():
        return "minari"
    if (path / "meta" / "info.json").exists():
        return "lerobot"
    if {"obs.npy", "path_lengths.npy"} & names:
        return "madiff"
    if any(name.startswith("obs_") and name.endswith(".npy") for name in names) or any(path.glob("seed_*_data")):
        return "omar"
    kinds = {_of_file(child) for child in path.iterdir() if child.is_file()} - {None}
    return kinds.pop() if len(kinds) == 1 else None


def _of_file(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".parquet"):
        return "table"
    if suffix == ".npz":
        return "overcooked" if (path.parent / "layouts.json").exists() else "npz"
    if suffix in (".hdf5", ".h5"):
        return "minari" if path.name == "main_data.hdf5" else "robomimic"
    if suffix == ".txt":
        with open(path, errors="replace") as file:
            words = file.readline(1_000).split()
        return "eth_ucy" if len(words) == 4 and all(map(is_number, words)) else None
    return None


def is_number(word: str) -> bool:
    """Whether a word of a text file is a number."""
    try:
        float(word)
    except ValueError:
        return False
    return True


def wrong_format(path: Path, tried: str, expected: str) -> ValueError:
    """An error that says what ``tried`` expects, and which format ``path`` looks like instead."""
    if not path.exists():
        return ValueError(f"{path} does not exist; expected {expected}.")
    likely = likely_format(path)
    if likely == "store":
        hint = "it is a store already: use it as it is"
    elif likely and likely != tried:
        hint = f"it looks like the format {likely}: try `diffplan data import {likely} {path}`"
    else:
        hint = "check the path"
    return ValueError(f"{path} is not in the format {tried} (expected {expected}); {hint}.")
