"""Improving a planner by acting."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from diffplan.commands.output import show, waiting
from diffplan.commands.worlds import Options, Run, load, make_safety

if TYPE_CHECKING:
    from diffplan.finetuning import Acting


@dataclass
class Finetune:
    """Improves a trained planner by acting in its environment, and keeps the best of it.

    The folder gets planner/ (or planners/AGENT/), the replay store, metrics.jsonl and checkpoints/. Ctrl-C leaves the
    best planner so far; the same command with --resume goes on, bit for bit.

    For example:
      diffplan finetune runs/spread --data data/spread --out runs/better
      diffplan finetune runs/spread --data data/spread --out runs/better --resume
      diffplan finetune runs/door --env crossing-v0 --option layout=doorway --data data/door --out runs/better --safe
      diffplan finetune runs/spread --data data/spread --out runs/steered --method noise --steps 20000
      diffplan plot runs/better --kind finetuning --out curve.png

    Args:
        path: folder of a run or of a planner.
        data: folder of the store that the planner was trained on; half of every batch comes from it.
        out: folder of the new run.
        env: environment to act in; by default the one that the data are from.
        option: an option of the environment as NAME=VALUE; repeat it for more.
        method: critic refreshes the value function only, weighted lets the denoiser learn too, from the
            better half of the episodes, noise learns which noise the frozen denoiser begins with, gradient moves
            its last step towards what went better by trial; auto is critic, until another is measured to pay.
        steps: joint environment steps in all, also when resumed; the round that reaches them is the last.
        online_share: share of every batch that comes from what is met now; more once the world is found to
            have changed.
        each: every agent learns for itself, with a planner of its own (planners/NAME), and executes its own part.
        newest: learn only from so many newest online episodes; all by default.
        priority: draw windows of the best episodes up to e^priority times as often as of the worst.
        episodes: of a round, side by side.
        updates_per_step: steps of learning for each environment step.
        critic_steps: of training a value function first, where the planner has none.
        num_samples: candidates a plan; as what critics may do, no matter of --method gradient.
        value_weight: of the value in the ranking; more explores less.
        guided: let the value's gradient move plans, too; only with --refine.
        refine: how far the critics may move first actions, in standard deviations of the data's (with another
            normalizer than gaussian, in its units); by default what scores best at the beginning: first samples as
            pretrained, candidates ranked but not refined, refined by 1 at one of three prices (of one candidate nothing
            can be moved), or one candidate that is guided; and at the end four times the candidates.
        refine_price: share of the returns' spread that a move by one of these must gain; only with --refine.
        safe: change actions where robots would come too close (SafetyFilter), also while exploring.
        score: what counts of an evaluation.
        evaluate_every: environment steps between two evaluations.
        evaluation_episodes: of each.
        floor: go back to the best round when a score is below this beyond doubt.
        seed: of everything random.
        resume: continue the run in --out (from the start where it has no checkpoint yet).
        tensorboard: also write TensorBoard event files.
        json: print the result as JSON.
    """

    path: Run
    data: Path
    out: Path
    env: str | None = None
    option: Options = field(default_factory=list)
    method: Literal["auto", "critic", "weighted", "noise", "gradient"] = "auto"
    steps: int = 100_000
    online_share: float = 0.5
    newest: int | None = None
    priority: float = 0.0
    each: bool = False
    episodes: int = 50
    updates_per_step: float = 0.05
    critic_steps: int = 2_000
    num_samples: int = 8
    value_weight: float = 4.0
    guided: bool = False
    refine: float | None = None
    refine_price: float = 0.1
    safe: bool = False
    score: Literal["return", "success"] = "return"
    evaluate_every: int = 10_000
    evaluation_episodes: int = 100
    floor: float | None = None
    seed: int = 0
    resume: bool = False
    tensorboard: bool = False
    json: bool = False

    def run(self) -> None:
        from diffplan.datasets import load_dataset
        from diffplan.finetuning import METHODS, Acting, finetune

        if self.refine is None and (self.guided or self.refine_price != Finetune.refine_price):
            raise ValueError(
                "--guided and --refine-price are of a --refine that is given, e.g. --refine 0; else ways are tried."
            )
        planner, env = load(self.path, None, self.env, self.option)
        with waiting("reading the data", shown=not self.json):
            offline = load_dataset(self.data, planner.horizon, planner.history, planner.normalizer)
        safety = make_safety(env) if self.safe else None
        acting = Acting(self.num_samples, self.value_weight, self.guided, self.refine, self.refine_price, safety)
        report = finetune(
            planner,
            env,
            offline=offline,
            out=self.out,
            method=self.method,
            steps=self.steps,
            acting=acting,
            online_share=self.online_share,
            newest=self.newest,
            priority=self.priority,
            each=self.each,
            episodes=self.episodes,
            updates_per_step=self.updates_per_step,
            critic_steps=self.critic_steps,
            score=self.score,
            evaluate_every=self.evaluate_every,
            evaluation_episodes=self.evaluation_episodes,
            floor=self.floor,
            seed=self.seed,
            resume=self.resume,
            tensorboard=self.tensorboard,
            progress=not self.json,
        )
        trusted, told = not METHODS[report.method].on_policy, asdict if self.json else str
        facts = {
            "planner": str(self.out / ("planners" if self.each else "planner")),
            "method": report.method,
            "steps": report.environment_steps,
            **{name: told(getattr(report, name)) for name in ("offline", "began", "best", "final")},
            **(report.acting.way if trusted else {}),
            "rollbacks": report.rollbacks,
            "signs": report.signs,
            "drifts": [f"episode {first}" for first in report.drifts],
            "seconds": report.seconds,
        }
        where = f" --env {self.env}" * (self.env is not None) + "".join(f" --option {one}" for one in self.option)
        where += " --safe" * self.safe
        facts["act with"] = f"diffplan evaluate {self.out}{_flags(report.acting) if trusted else ''}{where}"
        if report.best.value < report.offline.value:
            facts["act with"] = f"diffplan evaluate {self.path}{where}"
            facts["because"] = "as it was given, the planner scores higher"
        elif report.best.value <= report.began.value:
            gained = "acting so gained it, learning nothing yet" if report.began.value > report.offline.value else ""
            facts["because"] = f"it began with that score: {gained or 'nothing is gained yet'}"
        show(facts, self.json)


def _flags(acting: "Acting") -> str:
    """Options of ``diffplan evaluate`` that act so."""
    guide = "value" if acting.guided else "rank"
    chosen = acting.guided or acting.num_samples > 1  # one candidate leaves nothing to rank
    flags = f" --num-samples {acting.num_samples}" + f" --guide {guide}={acting.value_weight:g}" * chosen
    return flags + (f" --refine {acting.refine:g} --refine-price {acting.refine_price:g}" if acting.refine else "")
