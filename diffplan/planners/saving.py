"""A planner on disk: safetensors and JSON with a manifest of SHA-256; whole or not there; never executed."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from types import NoneType
from typing import Any, get_args, get_type_hints

from diffusers import ModelMixin

from diffplan.checks import MISFIT
from diffplan.files import explained_write_errors, inside, read_json, sha256, share, sync, write_json
from diffplan.models.saved import WEIGHTS, read_network
from diffplan.planner_folder import INDEX, replaced
from diffplan.planners.components import Components

MANIFEST = "manifest.json"
PROVENANCE = "provenance.json"
MOST_TIMESTEPS = 100_000  # of a scheduler
FUTURES = "futures"  # in the provenance of a planner that is told which future to draw
_HINTS = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(Components).items()}
OPTIONAL = tuple(name for name, kinds in _HINTS.items() if NoneType in kinds)
COMPONENTS: dict[str, tuple[Any, ...]] = {
    name: tuple(kind for kind in kinds if kind is not NoneType) for name, kinds in _HINTS.items()
}
"""The classes that each part of a planner may have; no other is ever made of a file."""
SETTINGS = {"spec": dict, "horizon": int, "history": int, "action_spread": float | None}
OWN = {*COMPONENTS, INDEX, PROVENANCE, MANIFEST}
"""What a planner's folder consists of; all else in it is somebody else's."""


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder; on success it gets a manifest and replaces ``path``, on failure it is removed.

    What else lies beside a planner's files in ``path``, such as a README or a repository, stays.

    Raises:
        ValueError: ``path`` holds something other than a planner, which would be lost.
        OSError: it cannot be written; what was there before is unchanged.
    """
    path = path.resolve()
    temporary, old = path.with_name(f".{path.name}.tmp"), replaced(path)
    with explained_write_errors(path):
        _recover(path, old)
        if path.exists() and not (path.is_dir() and ((path / INDEX).is_file() or not any(path.iterdir()))):
            raise ValueError(f"{path} is not a planner and would be replaced; choose a folder that is new or empty.")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            yield temporary
            files = sorted(file for file in temporary.rglob("*") if file.is_file())
            for file in files:
                share(file)
                sync(file)
            write_json(temporary / MANIFEST, {file.relative_to(temporary).as_posix(): sha256(file) for file in files})
            if path.exists():
                path.rename(old)
            temporary.rename(path)
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            _recover(path, old)


def _recover(path: Path, old: Path) -> None:
    """Cleans up after a save, also one that was killed. What was at ``path`` before comes back where nothing took its
    place, and else those files of it that are not a planner's."""
    if old.exists() and not path.exists():
        old.rename(path)
    for entry in old.glob("*"):
        if entry.name not in OWN and not os.path.lexists(path / entry.name):
            entry.rename(path / entry.name)
    shutil.rmtree(old, ignore_errors=True)


def load_components(folder: Path, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Checks every file against the manifest and builds the components and the planner's own settings.

    An optional component that the planner was saved without is None; those that are ``given`` are not read.

    Raises:
        ValueError: a file is damaged, missing or foreign, or names a class that a planner does not have.
    """
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
    if not isinstance(manifest, dict):
        raise ValueError(f"{folder} has no {MANIFEST}; save the planner again with save_pretrained.")
    for name, expected in manifest.items():
        file = inside(folder, name)
        if not file.is_file() or sha256(file) != expected:
            raise ValueError(f"{file} is missing or damaged (SHA-256 differs from {MANIFEST}); restore it from a copy.")
    _check_listed(folder, manifest, [INDEX])
    content = read_json(folder / INDEX)
    index = content if isinstance(content, dict) else {}
    if wrong := [name for name, kind in SETTINGS.items() if not isinstance(index.get(name), kind)]:
        raise ValueError(f"{folder / INDEX} lacks {', '.join(wrong)}, or holds no such thing; save the planner again.")
    absent = {name: None for name in OPTIONAL if index.get(name) in (None, [None, None])}
    read = [name for name in COMPONENTS if name not in absent and name not in given]
    _check_listed(folder, manifest, [f"{name}/{file}" for name in read for file in _files(name)])
    settings = {name: index.get(name) for name in SETTINGS}
    return absent | {name: _component(folder, index, name) for name in read} | dict(given), settings


def load_provenance(folder: Path, futures: bool = False) -> dict[str, Any]:
    """What a planner remembers of where it comes from; nothing in folders of earlier versions.

    Raises ``ValueError`` when the file holds something else than names and values, or when the planner draws futures
    and ``futures`` says that it should not, or the other way round.
    """
    file, facts = folder / PROVENANCE, {}
    if file.is_file():
        _check_listed(folder, read_json(folder / MANIFEST), [PROVENANCE])
        facts = read_json(file)
    if not isinstance(facts, dict):
        raise ValueError(f"{file} holds no dictionary; restore it from a copy or remove it.")
    if futures != (facts.get(FUTURES) in ("joint", "agents")):
        other = (
            "a planner that samples; read it with DiffusionPlanner" if futures else "futures; read them with Futures"
        )
        raise ValueError(f"{folder} holds {other}.from_pretrained.")
    return facts


def _files(name: str) -> list[str]:
    """The files of a component: its configuration, and weights if it is a network."""
    kind = COMPONENTS[name][0]  # all schedulers have files of one name
    return [kind.config_name, WEIGHTS] if issubclass(kind, ModelMixin) else [kind.config_name]


def _check_listed(folder: Path, manifest: dict[str, Any], files: list[str]) -> None:
    missing = sorted(set(files) - set(manifest))
    if missing:
        raise ValueError(f"{folder}/{MANIFEST} lacks {missing}; save the planner again.")


def _component(folder: Path, index: dict[str, Any], name: str) -> Any:
    entry = index.get(name)
    class_name = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
    kind = next((one for one in COMPONENTS[name] if one.__name__ == class_name), None)
    if kind is None:
        known = [one.__name__ for one in COMPONENTS[name]]
        raise ValueError(
            f"{folder / INDEX}: {name} is of class {class_name!r}, expected one of {known}. A class of your own is not "
            f"looked for; give from_pretrained(..., {name}=) what it should be."
        )
    if issubclass(kind, ModelMixin):
        return read_network(kind, folder / name)
    file = folder / name / kind.config_name
    config = read_json(file)
    if not isinstance(config, dict):  # diffusers would take a word for the name of a model to download
        raise ValueError(f"{file} does not describe a {class_name}: it holds no dictionary; save the planner again.")
    if not isinstance(steps := config.get("num_train_timesteps", 0), int) or steps > MOST_TIMESTEPS:
        raise ValueError(
            f"{file}: num_train_timesteps={steps}, expected at most {MOST_TIMESTEPS:,}; save the planner again."
        )
    try:
        return kind.from_config(config)
    except MISFIT as error:
        raise ValueError(
            f"{file} does not describe a {class_name} ({shorten(str(error), 200)}); if another version of diffplan "
            "saved it, train it anew."
        ) from error
