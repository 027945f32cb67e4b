"""Pictures and videos of plans, episodes, data and training."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from diffplan.commands.output import FILMS, STILLS, check_ending, show, waiting
from diffplan.commands.worlds import Options, Scheduler, load

if TYPE_CHECKING:
    from diffplan.rollout import Rollout
    from diffplan.trajectory import Plan, Trajectory

ENDINGS = {"denoising": STILLS + FILMS, "rollout": FILMS}
PLANNED = ("env", "option", "seed", "num_samples", "scheduler", "num_inference_steps")
SETTINGS = {
    "plan": PLANNED,
    "denoising": PLANNED,
    "rollout": (*PLANNED, "execute_steps"),
    "filmstrip": (*PLANNED, "execute_steps"),
    "belief": ("env", "option", "seed", "num_samples", "scheduler"),
}
"""Which options change what is drawn, for each kind; none where it is not named."""


@dataclass
class Plot:
    """Draws a plan, its denoising, an episode, a store or a learning curve.

    For example:
      diffplan plot runs/crossing --kind plan --out plan.png
      diffplan plot runs/crossing --kind denoising --num-inference-steps 24 --out denoising.gif
      diffplan plot runs/crossing --kind rollout --seed 3 --out rollout.mp4
      diffplan plot runs/crossing --kind filmstrip --out filmstrip.png
      diffplan plot runs/crossing --kind learning-curve --out loss.svg
      diffplan plot runs/better --kind finetuning --out curve.png
      diffplan plot data/crossing --kind dataset --out data.png
      diffplan plot runs/partners --kind belief --num-samples 32 --out belief.png

    Args:
        path: folder of a run (of a store for dataset).
        kind: what to draw; rollout, filmstrip and belief act in the environment, in closed loop. For belief
            the last robot is a partner that changes its style; the run needs a partner encoder.
        out: file to write: .png, .svg, .pdf; .mp4 or .gif for rollout; any of these for denoising.
        env: environment to plan in; by default the one that the data are from.
        option: an option of the environment as NAME=VALUE; repeat it for more.
        seed: of the episode and of the plan's noise.
        num_samples: how many candidates a plan.
        num_inference_steps: denoising steps.
        execute_steps: planned steps to execute before planning anew.
        scheduler: flow (Euler), ddim or dpm (DPM-Solver++ 2M); by default the planner's own.
        json: print what was written as JSON.
    """

    path: Annotated[Path, Positional, arg(metavar="RUN|DIR")]
    kind: Literal["plan", "denoising", "rollout", "filmstrip", "dataset", "learning-curve", "finetuning", "belief"]
    out: Path
    env: str | None = None
    option: Options = field(default_factory=list)
    seed: int = 0
    num_samples: int = 16
    num_inference_steps: int = 5
    execute_steps: int = 1
    scheduler: Scheduler | None = None
    json: bool = False

    def run(self) -> None:
        check_ending(f"--kind {self.kind} --out", self.out, ENDINGS.get(self.kind, STILLS))
        self._check()
        if self.out.suffix.lower() in FILMS:
            self._film()
        else:
            self._draw()
        show({"kind": self.kind, "out": str(self.out)}, self.json)

    def _check(self) -> None:
        """Raises ``ValueError`` for options that would change nothing."""
        default = Plot(self.path, self.kind, self.out)
        for name in (*PLANNED, "execute_steps"):
            if name not in SETTINGS.get(self.kind, ()) and getattr(self, name) != getattr(default, name):
                flag, kinds = f"--{name.replace('_', '-')}", [kind for kind in SETTINGS if name in SETTINGS[kind]]
                raise ValueError(f"{flag} changes nothing of --kind {self.kind}, only of {', '.join(kinds)}.")

    def _film(self) -> None:
        from diffplan.plotting import animate_denoising
        from diffplan.rollout import save_video

        if self.kind == "rollout":
            self._rollout().save(self.out)
        else:
            save_video(animate_denoising(self._plan()), self.out)

    def _draw(self) -> None:
        from diffplan import plotting
        from diffplan.datasets import TrajectoryStore

        if self.kind == "plan":
            figure = plotting.plot_plan(self._plan())
        elif self.kind == "denoising":
            figure = plotting.plot_denoising(self._plan())
        elif self.kind == "filmstrip":
            figure = plotting.plot_filmstrip(self._rollout())
        elif self.kind == "belief":
            figure = plotting.plot_belief(*self._watched())
        elif self.kind == "dataset":
            figure = plotting.plot_dataset(TrajectoryStore.open(self.path))
        elif self.kind == "finetuning":
            figure = plotting.plot_finetuning(self.path)
        else:
            figure = plotting.plot_learning_curve(self.path)
        plotting.save_figure(figure, self.out)

    def _plan(self) -> "Plan":
        planner, env = load(self.path, self.scheduler, self.env, self.option)
        observations, _ = env.reset(seed=self.seed)
        return planner(
            observations,
            num_samples=self.num_samples,
            num_inference_steps=self.num_inference_steps,
            seed=self.seed,
            return_chain=self.kind == "denoising",
        )

    def _rollout(self) -> "Rollout":
        from diffplan.planners import RecedingHorizonPolicy
        from diffplan.rollout import record_rollout

        planner, env = load(self.path, self.scheduler, self.env, [*self.option, "render_mode=rgb_array"])
        policy = RecedingHorizonPolicy(planner, self.execute_steps, self.num_samples, self.num_inference_steps)
        with waiting("filming an episode", shown=not self.json):
            return record_rollout(policy, env, self.seed)

    def _watched(self) -> "tuple[list[Plan], Trajectory, str]":
        from diffplan.partners import watch_partner

        planner, env = load(self.path, self.scheduler, self.env, self.option)
        encoder = planner.partner_encoder
        if encoder is None or not encoder.config.families:
            raise ValueError(
                f"{self.path} has no partner encoder that names families; train a planner with one in Python: "
                "PartnerEncoder.for_dataset(dataset, families), see docs/howto.md."
            )
        families, partner = tuple(encoder.config.families), planner.spec.names[-1]
        with waiting("watching a partner", shown=not self.json):
            episode, plans = watch_partner(planner, env, partner, families, self.seed, self.num_samples, switch=True)
        return plans, episode, partner
