"""Checkpoints of a training run: safetensors and JSON with SHA-256, whole or not there, the last few kept."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffplan.checks import MISFIT
from diffplan.datasets.manifest import MANIFEST
from diffplan.files import (
    alone,
    as_json,
    digest,
    explained_write_errors,
    read_json,
    sha256,
    share,
    sync,
    whole,
    write_json,
)
from diffplan.planner_folder import INDEX

PREFIX = "step_"
NEWEST = 2  # checkpoints that stay


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Writes ``folder/step_00000123`` (tensors, manifest, then the rename); removes all but the newest two.

    Raises:
        OSError: the disk is full or the folder read-only; the earlier checkpoints are whole.
    """
    target, temporary = folder / f"{PREFIX}{step:08d}", folder / f".{PREFIX}{step:08d}.tmp"
    with explained_write_errors(target):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            file = temporary / "state.safetensors"
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
            share(file)
            sync(file)
            manifest = {"step": step, "sha256": sha256(file), **facts}
            write_json(temporary / MANIFEST, manifest | {"digest": digest(manifest)})
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
            sync(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    for old in checkpoints(folder)[:-NEWEST]:
        shutil.rmtree(old)


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / MANIFEST).is_file())


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint. Raises ``ValueError`` naming the file when its bytes are not the ones that were written."""
    facts, file = read_json(path / MANIFEST), path / "state.safetensors"
    again = f"delete {path} to resume from the one before."
    if not isinstance(facts, dict) or facts.pop("digest", None) != digest(facts):
        raise ValueError(f"{path / MANIFEST} is damaged, or of an earlier version; {again}")
    step = facts.get("step")
    if not (isinstance(step, int) and path.name == f"{PREFIX}{step:08d}" and isinstance(facts.get("run", {}), dict)):
        raise ValueError(f"{path / MANIFEST} is of step {step!r}, or of no run; {again}")
    try:
        if sha256(file) != facts.get("sha256"):
            raise ValueError(f"{file} is damaged (SHA-256 differs from its manifest); {again}")
        tensors = load_file(file)
        if bad := [name for name, tensor in tensors.items() if bool(tensor.isnan().any())]:
            raise ValueError(f"{file}: {bad[0]} is not a number; {again}")
        return tensors, facts
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read ({error}); {again}") from error


def check_out(out: str | Path | None, resume: bool) -> None:
    """Raises ``ValueError`` where ``out`` is no place for a run, or holds one that is not to go on, or is missing."""
    if out is not None and Path(out).is_file():
        raise ValueError(f"{out} is a file; choose a folder for the run, e.g. {Path(out).with_suffix('')}_run.")
    for file, what in ((INDEX, "a saved planner itself"), (MANIFEST, "a store of episodes")):
        if out is not None and (Path(out) / file).exists():
            raise ValueError(f"{out} is {what}, no run; choose another folder, e.g. runs/{Path(out).name}.")
    if out is not None:
        begun = bool(checkpoints(Path(out) / "checkpoints"))
        if begun and not resume:
            raise ValueError(f"{out} holds a run already; go on by resume=True (--resume), or choose another folder.")
        if not begun and any((Path(out) / name).exists() for name in ("planner", "planners")):
            raise ValueError(f"{out} holds a planner, but no checkpoints to go on from; choose another folder.")
    if resume and out is None:
        raise ValueError("resume=True needs out=, the folder of the run to continue.")


class Kept:
    """The checkpoints of a run under way: one every so many steps, one at the end, one when it is interrupted.

    Meanwhile no other process may write to the run's folder: entering raises ``ValueError`` where one does.

    Args:
        out: the run's folder; None keeps nothing.
        first: steps done when the run begins, or goes on.
        steps: steps done when it ends.
        every: steps between two checkpoints.
        tensors: all that the run learned so far.
        facts: what run it is, see ``load_newest``.

    Example:
        ``with Kept(...) as kept: ... with kept.step(): update() ... kept.save_if_due()``
    """

    def __init__(
        self,
        out: Path | None,
        first: int,
        steps: int,
        every: int,
        tensors: Callable[[], dict[str, Tensor]],
        facts: dict[str, Any],
    ):
        self.out, self.folder, self.tensors, self.facts = out, out and out / "checkpoints", tensors, facts
        self._lock = ExitStack()
        self.first, self.done, self.steps, self.every = first, first, steps, every

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around what a step changes and tells: all of it is done, or nothing."""
        with whole():
            yield
            self.done += 1

    def save_if_due(self) -> None:
        """After every step."""
        if self.done % self.every == 0 or self.done == self.steps:
            self._save()

    def _save(self) -> None:
        if self.folder is not None:
            save_checkpoint(self.folder, self.done, self.tensors(), {"run": self.facts})

    def __enter__(self) -> Self:
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            self._lock.enter_context(alone(self.out))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        with self._lock:
            if kind in (KeyboardInterrupt, SystemExit) and self.done > self.first:
                self._save()


def load_newest(out: Path, facts: dict[str, Any], load: Callable[[dict[str, Tensor]], None]) -> int:
    """Lets ``load`` take the newest checkpoint of the run in ``out``, and returns its step; 0 where there is none.

    Raises:
        ValueError: it is of another run than ``facts`` say, or damaged.
    """
    found = checkpoints(out / "checkpoints")
    if not found:
        return 0
    tensors, manifest = load_checkpoint(found[-1])
    check_same_run(found[-1], manifest.get("run", {}), facts)
    with going_on(found[-1]):
        load(tensors)
    return int(manifest["step"])


@contextmanager
def going_on(path: Path) -> Iterator[None]:
    """Raises ``ValueError`` naming the checkpoint where it does not hold what the body takes from it."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except MISFIT as error:
        raise ValueError(
            f"{path} does not hold what its run goes on from ({type(error).__name__}: {shorten(str(error), 200)}); "
            "delete it to resume from the one before."
        ) from error


def check_same_run(path: Path, theirs: dict[str, Any], facts: dict[str, Any]) -> None:
    """Raises ``ValueError`` naming the differing settings when the checkpoint at ``path`` is of another run."""
    there, here = _differing({key: theirs.get(key) for key in facts}, as_json(facts))
    if there != here:
        raise ValueError(
            f"{path} is of another run: {there} there, {here} here; "
            "resume with the same settings and data, or choose another folder."
        )


def _differing(one: Any, other: Any) -> tuple[Any, Any]:
    """What of two values differs: of dictionaries only those entries."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return one, other
    pairs = {key: _differing(one.get(key), other.get(key)) for key in {**one, **other}}
    kept = [key for key, (left, right) in pairs.items() if left != right]
    return {key: pairs[key][0] for key in kept}, {key: pairs[key][1] for key in kept}
