"""Taking in other people's data: looked through once before anything is written, then put into a store."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from textwrap import shorten

from diffplan.checks import MISFIT
from diffplan.datasets.card import UNKNOWN, write_card
from diffplan.datasets.importers.recording import UNBOUNDED, Importer
from diffplan.datasets.manifest import MANIFEST
from diffplan.datasets.statistics import Statistics
from diffplan.datasets.store import TrajectoryStore
from diffplan.spec import JointSpec, Role


def import_episodes(
    importer: Importer,
    out: str | Path,
    *,
    drop_agents: Sequence[str] = (),
    env_spec: JointSpec | None = None,
    licence: str = UNKNOWN,
    origin: str = "",
) -> TrajectoryStore:
    """Reads other people's episodes into a new store, with a data card (``card.json``, ``CARD.md``) about them.

    Everything is read twice: first to find what is wrong, before anything is written, then to write it. Where the files
    do not tell action bounds, these are -1 and 1 for entries within them, and else the least and greatest in the data.

    Args:
        importer: one of ``diffplan.datasets.importers``, e.g. ``Omar("spread/expert")``.
        out: folder of the store, new or empty.
        drop_agents: agents to leave out.
        env_spec: of the environment that the data are from, e.g. ``make("crossing-v0").joint_spec``: its
            action bounds, positions, static entries, names and step become the data's, so planners act in it.
        licence: under which the data may be used, for the card.
        origin: who made them or where they were found, for the card.

    Raises:
        ValueError: another format (the likely right one is named), damaged or impossible data, ``out`` is in use, or
            the data are not of an environment with this spec.
        ImportError: the format needs a package that is not installed.
        OSError: the disk is full or read-only; nothing is left behind.

    Example:
        >>> import tempfile
        >>> from diffplan.datasets.importers import Table
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "tracks.csv").write_text("time,agent,x,y\\n0,a,0,0\\n0,b,1,0\\n0.5,a,0,1\\n")
        >>> store = import_episodes(Table(folder / "tracks.csv"), folder / "store")
        >>> store.spec, store[0].agent_mask.tolist()
        (JointSpec(2 agents: a, b; O=2 A=0 D=2; dt=0.5 s), [[True, True], [True, False]])
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "a store already" if (out / MANIFEST).exists() else "in use"
        raise ValueError(f"{out} is {what}; choose a new folder.")
    if isinstance(importer, type) or not callable(getattr(importer, "read", None)):
        raise TypeError(f"{importer!r} is no importer; make one, e.g. Table(path), see diffplan.datasets.importers.")
    with understood(importer):
        recording = importer.read().without(drop_agents)
        recording = recording if env_spec is None else recording.of(env_spec)
        statistics = Statistics.of(recording.spec, recording.episodes())
    if not statistics.report()["episodes"]:
        raise ValueError(f"{recording.source} has no episodes; there is nothing to import.")
    if env_spec is not None and (changing := statistics.static_but_changing()):
        raise ValueError(f"{changing} of {recording.source} change within an episode, but not in this environment.")
    spec = recording.spec if recording.bounded else with_bounds(recording.spec, statistics)
    there = out.exists()
    episodes = (replace(episode, spec=spec) for episode in recording.episodes())
    store = TrajectoryStore.write(out, spec, recording.source, episodes)
    try:
        write_card(store, statistics, licence, origin, recording.notes)
    except BaseException:
        folder = out.resolve()  # where a link leads
        shutil.rmtree(folder, ignore_errors=True)
        if there:
            folder.mkdir()
        raise
    return store


@contextmanager
def understood(importer: Importer) -> Iterator[None]:
    """Raises ``ValueError`` where files are laid out in a way that a format of ours does not know at all."""
    try:
        yield
    except MISFIT as error:
        if not type(importer).__module__.startswith("diffplan."):
            raise
        source, told = getattr(importer, "source", "it"), f"{type(error).__name__}: {shorten(str(error), 200)}"
        raise ValueError(
            f"{source} cannot be read as {type(importer).__name__} data ({told}); it is damaged, or of another layout "
            "than the format has."
        ) from error


def with_bounds(spec: JointSpec, statistics: Statistics) -> JointSpec:
    """The spec with bounds that hold every action of the data."""
    return replace(
        spec, roles={name: _bounded(role, *statistics.action_range(name)) for name, role in spec.roles.items()}
    )


def _bounded(role: Role, least: list[float], greatest: list[float]) -> Role:
    low, high = [], []
    for lowest, highest in zip(least, greatest, strict=True):
        inside = UNBOUNDED[0] <= lowest and highest <= UNBOUNDED[1]
        lowest, highest = UNBOUNDED if inside else (lowest, highest)
        low.append(lowest)
        high.append(highest if highest > lowest else lowest + 1.0)  # the same everywhere: any bounds will do
    return replace(role, action_low=tuple(low), action_high=tuple(high))
