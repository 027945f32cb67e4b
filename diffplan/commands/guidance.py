"""Looking into what guidance does."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from diffplan.commands.output import check_ending, show
from diffplan.commands.worlds import Options, Run, Scheduler, load, parse_guides


@dataclass
class Guidance:
    """Tries a guide at several weights: realism of the plans, success, contacts, return.

    For example:
      diffplan guidance runs/crossing --guide separation --weights 0 1 10 100 --plot guidance.png
      diffplan guidance runs/spread --guide value --weights 0 0.3 1 3 --num-samples 16 --json

    Args:
        path: folder of a run or of a planner.
        guide: what plans should be like: value, value:AGENT, rank (by value), separation, separation:METRES,
            clearance:METRES or speed:LIMIT.
        weights: strengths to try; 0 is the unguided planner.
        env: environment to act in; by default the one that the data are from.
        option: an option of the environment as NAME=VALUE; repeat it for more.
        episodes: how many, for each weight.
        seed: settles every episode.
        num_samples: candidates a plan.
        scheduler: flow (Euler), ddim or dpm (DPM-Solver++ 2M); by default the planner's own.
        plot: picture to write (.png, .svg or .pdf).
        json: print everything as JSON.
    """

    path: Run
    guide: str
    weights: list[float]
    env: str | None = None
    option: Options = field(default_factory=list)
    episodes: int = 50
    seed: int = 0
    num_samples: int = 1
    scheduler: Scheduler | None = None
    plot: Path | None = None
    json: bool = False

    def run(self) -> None:
        from diffplan.guidance_sweep import sweep_guidance
        from diffplan.plotting import plot_comparison, save_figure

        if self.plot:
            check_ending("--plot", self.plot)
        if not self.weights:
            raise ValueError("--weights names no weight to try; give some, e.g. --weights 0 1 10.")
        planner, env = load(self.path, self.scheduler, self.env, self.option)
        points = sweep_guidance(
            planner,
            env,
            lambda weight: parse_guides([f"{self.guide}={weight}"], planner),
            self.weights,
            num_samples=self.num_samples,
            episodes=self.episodes,
            seed=self.seed,
        )
        table = {f"{self.guide} {point.weight:g}": point.figures for point in points}
        if self.plot:
            save_figure(plot_comparison(table), self.plot)
        if self.json:
            plain = {name: {key: dataclasses.asdict(one) for key, one in row.items()} for name, row in table.items()}
            return show(plain, as_json=True)
        for name, row in table.items():
            show({name: "", **{f"  {key}": str(one) for key, one in row.items()}})
