"""Training planners and putting them to the test."""

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from diffplan.commands.output import show, waiting
from diffplan.commands.worlds import Options, Run, Scheduler, check_ranks, load, make_safety, parse_guides

if TYPE_CHECKING:
    from diffplan.datasets import TrajectoryDataset
    from diffplan.evaluation import Policy
    from diffplan.models import ValueFunction
    from diffplan.planners import DiffusionPlanner, RecedingHorizonPolicy, SafetyFilter


@dataclass
class Train:
    """Trains a planner on a store of episodes.

    The run's folder gets planner/, metrics.jsonl and checkpoints/ (the value function's
    below value/). The same command with --resume continues from the newest checkpoint,
    bit for bit; the sizes, data and settings must be those of the run.

    For example:
      diffplan train data/crossing --out runs/crossing
      diffplan train data/crossing --out runs/crossing --resume
      diffplan train data/medium --out runs/medium --best 0.5 --value-steps 5000
      diffplan train data/crossing --out runs/small --width 32 --depth 2 --steps 1000
      diffplan train data/crossing --out runs/crossing --resume --value-steps 5000
      diffplan train data/walkers --out runs/walkers --history 7 --horizon 13 --normalizer motion --frames --mirror
      torchrun --nproc_per_node 2 -m diffplan train data/crossing --out runs/two

    Args:
        path: folder of a store.
        out: folder of the run.
        horizon: planned steps, from the present on.
        history: steps before the present that the network sees.
        stride: steps between the presents of neighbouring windows.
        normalizer: what brings the data to a common size.
        inside: only windows that lie within their episode as a whole.
        crowd: at most so many agents a window, one and those nearest to it; all by default.
        best: imitate only this share of the episodes, those of the best return; values learn from all.
        width: channels of a token.
        depth: number of blocks.
        patch_size: steps a token, a divisor of history + horizon; the largest of 8, 4, 2, 1 by default.
        agent_attention: agents attend to each other; --no-agent-attention makes every agent plan alone (the ablation).
        prediction: what the network's output is.
        return_conditioning: also learn to plan for a return that is asked for.
        frames: see positions in the agents' own frames, and how agents stand to each other; needs --normalizer motion.
        pace: measure each agent's frame by its own pace; needs --frames, and data without actions.
        neighbours: how many others an agent attends to, the nearest ones; needs --frames. 0: all.
        turn: turn windows by any angle before they are learned; needs --normalizer motion.
        mirror: mirror every second window, likewise.
        scale: scale windows by up to this factor, likewise.
        jitter: measure past positions of every second window with errors of up to this standard deviation, in the
            normalizer's unit, likewise; e.g. 0.15 for people tracked by eye.
        value_steps: then train a value function too, for so many steps; it becomes part of the planner.
        discount: of the value function's rewards; those more than 1 / (1 - discount) steps ahead count little.
        reach: let the value function expect a team whose actions are refined, by so much from those of the data;
            give about half of the later --refine.
        steps: optimiser steps in all, also when resumed.
        batch_size: windows a step, over all processes.
        learning_rate: peak of the schedule.
        ema_decay: of the averaged weights.
        start_share: share of the windows that begin where an episode does.
        change_weight: what errors of changes from step to step count beside errors of the entries; 0: nothing.
        action_weight: what an action's error counts beside an observation's; more where observations are wide.
        precision: auto computes in bfloat16 where the processor does.
        seed: of everything random.
        resume: continue the run in --out (from the start where it has no checkpoint yet).
        checkpoint_every: steps between two checkpoints.
        log_every: steps between two lines of metrics.
        compile: use torch.compile: slow to start, faster steps.
        tensorboard: also write TensorBoard event files.
        json: print the result as JSON.
    """

    path: Positional[Path]
    out: Path
    horizon: int = 32
    history: int = 0
    stride: int = 1
    normalizer: Literal["limits", "gaussian", "quantile", "motion"] = "gaussian"
    inside: bool = False
    crowd: int | None = None
    best: float = 1.0
    width: int = 96
    depth: int = 3
    patch_size: int | None = None
    agent_attention: bool = True
    prediction: Literal["sample", "velocity"] = "sample"
    return_conditioning: bool = False
    frames: bool = False
    pace: bool = False
    neighbours: int = 0
    turn: bool = False
    mirror: bool = False
    scale: float = 1.0
    jitter: float = 0.0
    value_steps: int = 0
    discount: float = 0.99
    reach: float = 0.0
    steps: int = 3_000
    batch_size: int = 128
    learning_rate: float = 8e-3
    ema_decay: float = 0.999
    start_share: float = 0.25
    change_weight: float = 0.05
    action_weight: float = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0
    resume: bool = False
    checkpoint_every: int = 1_000
    log_every: int = 50
    compile: bool = False
    tensorboard: bool = False
    json: bool = False

    def run(self) -> None:
        from accelerate import PartialState

        from diffplan.augmentation import Augmentation
        from diffplan.datasets import load_dataset
        from diffplan.planners import DiffusionPlanner
        from diffplan.training import train
        from diffplan.value_training import train_value

        with waiting("reading the data", shown=not self.json):
            layout = (self.horizon, self.history, self.normalizer, self.stride)
            dataset = load_dataset(self.path, *layout, inside=self.inside, crowd=self.crowd)
            imitated = dataset.best(self.best)
        returns = dataset.store.mean_returns[dataset.episodes]
        if (self.best < 1 or self.return_conditioning) and returns.min() == returns.max():
            raise ValueError("all episodes have the same return: leave out --best and --return-conditioning.")
        planner = DiffusionPlanner.for_dataset(
            dataset,
            width=self.width,
            depth=self.depth,
            patch_size=self.patch_size,
            agent_attention=self.agent_attention,
            prediction=self.prediction,
            return_conditioning=self.return_conditioning,
            frames=self.frames,
            pace=self.pace,
            neighbours=self.neighbours,
            seed=self.seed,
        )
        augmentation = Augmentation(self.turn, self.mirror, self.scale, self.jitter)
        changed = self.frames or augmentation != Augmentation()
        if changed and (rest := augmentation.untouched(dataset.spec)) and not self.json:
            show({"note": f"{rest} stay as they are, turned or not: name velocities, leave directions out"})
        if self.resume and (self.out / "planner").exists():  # what was trained beside the denoiser stays
            planner.register_modules(value_function=DiffusionPlanner.from_pretrained(self.out).value_function)
        value = self._value(dataset)
        report = train(
            planner,
            imitated,
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            ema_decay=self.ema_decay,
            start_share=self.start_share,
            change_weight=self.change_weight,
            action_weight=self.action_weight,
            augmentation=None if augmentation == Augmentation() else augmentation,
            precision=self.precision,
            seed=self.seed,
            out=self.out,
            resume=self.resume,
            checkpoint_every=self.checkpoint_every,
            log_every=self.log_every,
            compile=self.compile,
            tensorboard=self.tensorboard,
            progress=not self.json,
        )
        first = PartialState().is_main_process  # of several processes, one trains values and answers
        if value is not None and first:
            train_value(
                value.to(planner.device),
                dataset,
                steps=self.value_steps,
                reach=self.reach,
                seed=self.seed,
                out=self.out / "value",
                resume=self.resume,
                checkpoint_every=self.checkpoint_every,
                log_every=self.log_every,
                progress=not self.json,
            )
            planner.register_modules(value_function=value)
            planner.save_pretrained(self.out / "planner")
        loss = report.losses[-1] if report.losses else None
        result = {"planner": str(self.out / "planner"), "steps": self.steps, "loss": loss, "seconds": report.seconds}
        result["action_spread"] = planner.config["action_spread"]
        if first:
            show(result, self.json)

    def _value(self, dataset: "TrajectoryDataset") -> "ValueFunction | None":
        """The value function to train; raises ``ValueError`` before any work where its options make no sense."""
        from diffplan.models import ValueFunction

        if self.value_steps < 0:
            raise ValueError(f"--value-steps {self.value_steps}; give 0 (no value function) or more, e.g. 5000.")
        if not self.value_steps:
            if (self.discount, self.reach) != (Train.discount, Train.reach):
                raise ValueError("--discount and --reach are of values; give --value-steps, e.g. 5000, too.")
            return None
        if not 0 <= self.reach < float("inf"):
            raise ValueError(f"--reach {self.reach}; give 0 (only the data's actions) or more, e.g. 0.5.")
        return ValueFunction.for_dataset(dataset, discount=self.discount, seed=self.seed)


@dataclass
class Evaluate:
    """Runs a planner in closed loop and reports means with 95 % intervals.

    For example:
      diffplan evaluate runs/crossing
      diffplan evaluate runs/crossing --episodes 20 --option num_robots=6
      diffplan evaluate runs/crossing --env crossing-v0 --option layout=doorway --json
      diffplan evaluate runs/crossing --scheduler ddim --num-inference-steps 10
      diffplan evaluate runs/crossing --num-samples 16 --guide value=0.5 --guide separation:0.2=10

    Args:
        path: folder of a run or of a planner; or of a run of finetune --each, where each agent follows its own.
        env: environment to act in; by default the one that the data are from.
        option: an option of the environment as NAME=VALUE; repeat it for more.
        episodes: how many.
        seed: settles every episode.
        batch_size: episodes side by side; the same number gives the same figures, others may differ in the last digits,
            which guides and refinement let grow.
        max_steps: end every episode after so many steps; by default the environment alone ends them.
        execute_steps: planned steps to execute before planning anew.
        num_samples: candidates a plan; 1 by default, 8 to --refine.
        num_inference_steps: denoising steps of a first plan.
        scheduler: flow (Euler), ddim or dpm (DPM-Solver++ 2M); by default the planner's own.
        warm_start_level: noise level at which later plans start from the last one; 1 is pure noise.
        warm_start_steps: denoising steps of those.
        guide: what plans should be like, as NAME=WEIGHT: value, value:AGENT, rank (by value), separation:METRES
            (separation alone: the robots' diameter), clearance:METRES, speed:LIMIT.
        resample: resample the candidates as particles while they are denoised; needs --guide.
        target_return: rank of the return to plan for, 0 (worst of the data) to 1 (best).
        guidance_scale: how far to go for that; above 1 exaggerates it.
        realism: weight of how likely a plan looks to the unguided network, in the ranking.
        refine: how far the value function may move first actions, in standard deviations of the data's (with another
            normalizer than gaussian, in its units); less where candidates agree.
        refine_price: share of the returns' spread that a move by one of these must gain; only with --refine.
        decode_actions: read actions off the planned observations (inverse dynamics); mostly worse, for small errors of
            planned positions become actions.
        deadline_ms: plan in this time, for all episodes of a batch together (--batch-size 1: as a robot does); a plan
            that takes longer is not used, and counted.
        safe: change actions where robots would come too close (SafetyFilter).
        json: print the report, with every episode, as JSON.
    """

    path: Run
    env: str | None = None
    option: Options = field(default_factory=list)
    episodes: int = 100
    seed: int = 0
    batch_size: int = 50
    max_steps: int | None = None
    execute_steps: int = 1
    num_samples: int | None = None
    num_inference_steps: int = 5
    scheduler: Scheduler | None = None
    warm_start_level: float = 0.7
    warm_start_steps: int = 1
    guide: Options = field(default_factory=list)
    resample: bool = False
    target_return: float | None = None
    guidance_scale: float = 1.0
    realism: float = 0.0
    refine: float = 0.0
    refine_price: float = 0.1
    decode_actions: bool = False
    deadline_ms: float | None = None
    safe: bool = False
    json: bool = False

    def run(self) -> None:
        from diffplan.evaluation import evaluate
        from diffplan.partners import TeamOfPolicies
        from diffplan.planner_folder import team_folders

        self._check()
        team = team_folders(self.path)
        planners = [load(path, self.scheduler, self.env, self.option) for path in team.values() or [self.path]]
        env = planners[0][1]
        safety = make_safety(env) if self.safe else None
        if team:
            filtered = None if safety is None else partial(safety.filter_actions, planners[0][0].spec)
            members = {name: self._policy(planner) for name, (planner, _) in zip(team, planners, strict=True)}
            policy: Policy = TeamOfPolicies(members, filtered)
        else:
            policy = self._policy(planners[0][0], safety)
        report = evaluate(
            policy,
            env,
            episodes=self.episodes,
            seed=self.seed,
            batch_size=self.batch_size,
            max_steps=self.max_steps,
            progress=not self.json,
        )
        counted = None if safety is None else asdict(safety.stats)
        if self.json:
            return show(report.to_dict() | ({"filter": counted} if counted else {}), as_json=True)
        together = min(self.batch_size, self.episodes)
        planning = f"{report.plan_ms:.1f}" + f" (a plan; up to {together} are made at once)" * (together > 1)
        facts = {**report.summary(), "plan_ms": planning, "fallbacks": report.fallbacks}
        if counted:
            told = "changed {changed} of {calls} joint actions, {infeasible} infeasible"
            facts["filter"] = told.format(**counted)
        show(facts)

    def _check(self) -> None:
        """Raises ``ValueError`` for options that would change nothing."""
        if self.num_samples == 1 or (self.num_samples is None and not self.refine):
            check_ranks(self.guide, self.realism)
        if self.refine_price != Evaluate.refine_price and not self.refine:
            raise ValueError("--refine-price is of --refine; give that, too, e.g. --refine 1.")

    def _policy(self, planner: "DiffusionPlanner", safety: "SafetyFilter | None" = None) -> "RecedingHorizonPolicy":
        from diffplan.planners import RecedingHorizonPolicy

        return RecedingHorizonPolicy(
            planner,
            execute_steps=self.execute_steps,
            num_samples=self.num_samples,
            num_inference_steps=self.num_inference_steps,
            warm_start_level=self.warm_start_level,
            warm_start_steps=self.warm_start_steps,
            decode_actions=self.decode_actions,
            guides=parse_guides(self.guide, planner),
            resample=self.resample,
            target_return=self.target_return,
            guidance_scale=self.guidance_scale,
            realism=self.realism,
            refine=self.refine,
            refine_price=self.refine_price,
            deadline_ms=self.deadline_ms,
            safety=safety,
        )
