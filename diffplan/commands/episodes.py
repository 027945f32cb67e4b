"""Recording episodes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from diffplan.commands.output import show
from diffplan.commands.worlds import Options, make_env, parse_options


@dataclass
class Collect:
    """Records episodes of an environment's scripted behaviour policy.

    A collection that was interrupted goes on when the same command is given again.

    For example:
      diffplan collect crossing-v0 --out data/crossing --episodes 1000
      diffplan collect crossing-v0 --out data/doorway --option layout=doorway
      diffplan collect crossing-v0 --out data/mixed --skill replay --workers 4
      diffplan collect mpe:simple_spread_v3 --out data/spread --seed 1

    Args:
        env: crossing-v0, transport-v0, or FAMILY:TASK with family mpe, mamujoco or robosuite.
        out: folder of the store, new or begun by the same command.
        episodes: how many episodes the store shall hold.
        skill: how well the script drives; replay draws one of the others an episode.
        style: in which way it drives, e.g. clockwise; mixed draws one an episode.
        option: an option of the environment as NAME=VALUE, e.g. num_robots=8; repeat it for more.
        seed: settles all episodes.
        workers: processes; 0 records in this one.
        json: print facts about the store as JSON.
    """

    env: Positional[str]
    out: Path
    episodes: int = 1_000
    skill: Literal["expert", "medium", "random", "replay"] = "expert"
    style: str = "mixed"
    option: Options = field(default_factory=list)
    seed: int = 0
    workers: int = 2
    json: bool = False

    def run(self) -> None:
        from diffplan.datasets import collect_episodes

        options = parse_options(self.option)
        make_env(self.env, options).close()
        store = collect_episodes(
            self.env,
            out=self.out,
            episodes=self.episodes,
            skill=self.skill,
            style=self.style,
            seed=self.seed,
            workers=self.workers,
            env_options=options,
            progress=not self.json,
        )
        show(store.info(), self.json)
