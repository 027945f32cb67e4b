"""``diffplan data ...``: what one can do with a store, and with other people's data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Generic, Literal, TypeVar

from tyro.conf import OmitArgPrefixes, Positional, PositionalRequiredArgs, arg

from diffplan.commands.group import Group
from diffplan.commands.output import show, waiting
from diffplan.commands.worlds import Options, make_env, parse_options

if TYPE_CHECKING:
    from diffplan.datasets.importers import Importer

Store = Annotated[Path, Positional, arg(metavar="DIR")]


@dataclass
class Info:
    """Tells what a store holds, from its manifest.

    For example:
      diffplan data info data/crossing
      diffplan data info data/crossing --json

    Args:
        path: folder of a store.
        json: print JSON.
    """

    path: Store
    json: bool = False

    def run(self) -> None:
        from diffplan.datasets import TrajectoryStore

        show(TrajectoryStore.open(self.path).info(), self.json)


@dataclass
class Verify:
    """Re-hashes every file of a store.

    For example:
      diffplan data verify data/crossing

    Args:
        path: folder of a store.
        json: print JSON.
    """

    path: Store
    json: bool = False

    def run(self) -> None:
        from diffplan.datasets import TrajectoryStore

        store = TrajectoryStore.open(self.path)
        with waiting("reading every file", shown=not self.json):
            store.verify()
        show({"path": str(self.path), "episodes": len(store), "verified": True}, self.json)


@dataclass
class Stats:
    """Reads all episodes: lengths, who is there, returns, constant entries, gaps, jumps, duplicates.

    For example:
      diffplan data stats data/crossing

    Args:
        path: folder of a store.
        json: print JSON.
    """

    path: Store
    json: bool = False

    def run(self) -> None:
        from diffplan.datasets import TrajectoryStore
        from diffplan.datasets.statistics import Statistics

        store = TrajectoryStore.open(self.path)
        with waiting("reading every episode", shown=not self.json):
            statistics = Statistics.of(store.spec, store)
        show(statistics.report(), self.json)


@dataclass
class Card:
    """Writes the data card of a store (card.json and CARD.md): source, licence, and what the episodes are like.

    For example:
      diffplan data card data/crossing --licence Apache-2.0 --origin "our own script"

    Args:
        path: folder of a store.
        licence: under which the data may be used; as the card there is says, if not given.
        origin: who made them or where they were found; likewise.
        json: print the card as JSON.
    """

    path: Store
    licence: str | None = None
    origin: str | None = None
    json: bool = False

    def run(self) -> None:
        from diffplan.datasets import TrajectoryStore
        from diffplan.datasets.card import UNKNOWN, read_card, write_card
        from diffplan.datasets.statistics import Statistics

        store = TrajectoryStore.open(self.path)
        before = read_card(self.path) or {}
        licence = before.get("licence", UNKNOWN) if self.licence is None else self.licence
        origin = before.get("origin", "") if self.origin is None else self.origin
        with waiting("reading every episode", shown=not self.json):
            card = write_card(store, Statistics.of(store.spec, store), licence, origin, before.get("notes", ()))
        show(card, self.json)


@dataclass
class Merge:
    """Writes all episodes of several stores to a new one; agents that a store does not have are absent.

    For example:
      diffplan data merge data/two data/four --out data/teams

    Args:
        paths: folders of the stores.
        out: folder of the new store.
        json: print facts about it as JSON.
    """

    paths: Annotated[list[Path], Positional, arg(metavar="DIR DIR ...")]
    out: Path
    json: bool = False

    def run(self) -> None:
        from diffplan.datasets import merge_stores

        show(merge_stores(self.paths, self.out).info(), self.json)


@dataclass
class Split:
    """Writes a random share of the episodes to one new store and the others to a second one.

    For example:
      diffplan data split data/crossing --outs data/train data/test --share 0.9

    Args:
        path: folder of a store.
        outs: folders of the two new stores.
        share: of the first one.
        seed: settles which episodes.
        json: print facts about both as JSON.
    """

    path: Store
    outs: tuple[Path, Path]
    share: float = 0.9
    seed: int = 0
    json: bool = False

    def run(self) -> None:
        from diffplan.datasets.editing import split_store

        first, second = split_store(self.path, self.outs, self.share, self.seed)
        show(
            {str(store.path): {"episodes": len(store), "steps": store.num_steps} for store in (first, second)},
            self.json,
        )


@dataclass
class Subsample:
    """Writes some episodes, drawn at random, to a new store.

    For example:
      diffplan data subsample data/crossing --out data/small --episodes 100

    Args:
        path: folder of a store.
        out: folder of the new store.
        episodes: how many.
        seed: settles which.
        json: print facts about it as JSON.
    """

    path: Store
    out: Path
    episodes: int
    seed: int = 0
    json: bool = False

    def run(self) -> None:
        from diffplan.datasets.editing import subsample_store

        show(subsample_store(self.path, self.out, self.episodes, self.seed).info(), self.json)


@dataclass
class Repair:
    """Writes what is still good in a damaged store, to the last good episode, to a new one.

    For example:
      diffplan data repair data/crossing --out data/saved

    Args:
        path: folder of the damaged store, which stays as it is.
        out: folder of the new one.
        json: print what was kept and lost as JSON.
    """

    path: Store
    out: Path
    json: bool = False

    def run(self) -> None:
        from diffplan.datasets.editing import repair_store

        with waiting("reading every file", shown=not self.json):
            repair = repair_store(self.path, self.out)
        facts = {"kept": repair.kept, "lost": repair.lost, "unverified": repair.unverified}
        show({"out": str(self.out), **facts, "damaged": list(repair.damaged)}, self.json)


@dataclass
class Export:
    """Gives the episodes of a store to others: one npz file, or a Minari data set (needs h5py).

    For example:
      diffplan data export npz data/crossing --out crossing.npz
      diffplan data export minari data/crossing --out minari/crossing

    Args:
        format: npz or minari.
        path: folder of a store.
        out: file or folder to write.
        json: print what was written as JSON.
    """

    format: Positional[Literal["npz", "minari"]]
    path: Store
    out: Path
    json: bool = False

    def run(self) -> None:
        from diffplan.datasets import TrajectoryStore
        from diffplan.datasets.exporting import export_minari, export_npz

        store = TrajectoryStore.open(self.path)
        with waiting("writing", shown=not self.json):
            out = (export_npz if self.format == "npz" else export_minari)(store, self.out)
        show({"episodes": len(store), "out": str(out)}, self.json)


T = TypeVar("T", bound="Importer")


@dataclass
class Import(Generic[T]):
    """Reads other people's data into a new store, with a report on what they are like.

    Args:
        files: what to read.
        out: folder of the store.
        drop_agents: agents to leave out.
        env: environment that the data are from, e.g. crossing-v0, with its options: planners of them then act in it.
        option: an option of it as NAME=VALUE; repeat it for more.
        licence: under which the data may be used, for the data card.
        origin: who made them or where they were found, for the data card.
        json: print the data card as JSON.
    """

    files: Annotated[T, PositionalRequiredArgs, OmitArgPrefixes, arg(name="")]
    out: Path
    drop_agents: tuple[str, ...] = ()
    env: str | None = None
    option: Options = field(default_factory=list)
    licence: str = "not stated"
    origin: str = ""
    json: bool = False

    def run(self) -> None:
        from diffplan.datasets import import_episodes
        from diffplan.datasets.card import read_card
        from diffplan.envs.spaces import spec_from_env

        if self.option and self.env is None:
            raise ValueError("--option is of an environment; name it by --env.")
        env_spec = None if self.env is None else spec_from_env(make_env(self.env, parse_options(self.option)))
        with waiting("reading twice: to look, then to write", shown=not self.json):
            import_episodes(
                self.files,
                self.out,
                drop_agents=self.drop_agents,
                env_spec=env_spec,
                licence=self.licence,
                origin=self.origin,
            )
        card = read_card(self.out) or {}
        if self.json:
            return show(card, as_json=True)
        show({"source": card["source"], "licence": card["licence"], **card["report"]})
        for note in card["notes"]:
            print(f"{'note':<12} {note}")


def formats() -> Mapping[str, type]:
    """The formats that can be imported from files."""
    from diffplan.datasets import importers

    return {
        "eth_ucy": Import[importers.EthUcy],
        "lerobot": Import[importers.LeRobot],
        "madiff": Import[importers.Madiff],
        "minari": Import[importers.Minari],
        "npz": Import[importers.Npz],
        "omar": Import[importers.Omar],
        "overcooked": Import[importers.Overcooked],
        "robomimic": Import[importers.Robomimic],
        "table": Import[importers.Table],
        "vault": Import[importers.Vault],
    }


IMPORT = Group(
    """Reads other people's data into a new store, with a report on what they are like.

    Each format has its own --help, which lists what its files do not say.

    For example:
      diffplan data import omar spread/expert --out data/spread --dt 0.1
      diffplan data import npz mine.npz --out data/mine --env crossing-v0 --option num_robots=3
      diffplan data import eth_ucy eth_ucy/train --out data/walkers --frames 20 --stride 1
      diffplan data import table tracks.csv --out data/tracks --units mm --anonymous
      diffplan data import robomimic lift.hdf5 --out data/lift --licence MIT
    """,
    formats,
)

DATA = Group(
    """Looks at stores, makes new ones of them, imports and exports.

    For example:
      diffplan data info data/crossing
      diffplan data verify data/crossing
      diffplan data import table tracks.csv --out data/tracks
      diffplan data export npz data/crossing --out crossing.npz
    """,
    lambda: {
        "info": Info,
        "verify": Verify,
        "stats": Stats,
        "card": Card,
        "merge": Merge,
        "split": Split,
        "subsample": Subsample,
        "repair": Repair,
        "import": IMPORT,
        "export": Export,
    },
)
