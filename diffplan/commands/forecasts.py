"""How far forecasts are from recordings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from diffplan.commands.output import show
from diffplan.commands.worlds import Run, Scheduler, load_planner


@dataclass
class Forecast:
    """Forecasts recorded episodes and reports how far off forecasts were, with 95 % intervals.

    Of every window so many futures are drawn and the nearest counts (best of K): for each
    agent by itself (marginal_ade, marginal_fde: mean distance, and that at the end), and
    for all together (joint_ade, joint_fde). region_80 is how often agents were within the
    region that holds 80 % of the samples. Give data that the planner did not learn from;
    episodes that share steps count as independent. One forecast as a picture:
    diffplan plan --forecast.

    For example:
      diffplan forecast runs/walkers data/held_out
      diffplan forecast runs/walkers data/held_out --windows 0 --touch 0.2 --json
      diffplan forecast runs/crossing data/test --no-actions --num-samples 20

    Args:
        path: folder of a run or of a planner.
        store: folder of the recorded episodes.
        futures: how many futures of a window may be right (K).
        num_samples: samples of a window, whose clusters' means are the futures; where as many, samples are.
        num_inference_steps: denoising steps.
        scheduler: flow (Euler), ddim or dpm (DPM-Solver++ 2M); by default the planner's own.
        windows: so many, evenly spread over the data; 0: all.
        actions: forecast under the recorded actions, where agents have any; --no-actions foresees them, too.
        touch: report the share of agents that come closer than this to another.
        seed: of the samples' noise.
        json: print the report, with every window, as JSON.
    """

    path: Run
    store: Annotated[Path, Positional, arg(metavar="STORE")]
    futures: int = 20
    num_samples: int = 200
    num_inference_steps: int = 5
    scheduler: Scheduler | None = None
    windows: int = 500
    actions: bool = True
    touch: float | None = None
    seed: int = 0
    json: bool = False

    def run(self) -> None:
        from diffplan.datasets import load_dataset
        from diffplan.forecasting import evaluate_forecasts

        if self.windows < 0:
            raise ValueError(f"--windows {self.windows}; give a number of windows, or 0 for all.")
        planner = load_planner(self.path, self.scheduler)
        dataset = load_dataset(self.store, planner.horizon, planner.history, normalizer=None, inside=True)
        report = evaluate_forecasts(
            planner,
            dataset,
            futures=self.futures,
            num_samples=self.num_samples,
            num_inference_steps=self.num_inference_steps,
            windows=self.windows or None,
            actions=self.actions,
            touch=self.touch,
            seed=self.seed,
            progress=not self.json,
        )
        if self.json:
            return show(report.to_dict(), as_json=True)
        show({"windows": f"{len(report.agents)}, {sum(report.agents)} agents in them", **report.summary()})
