"""What inferring partners' styles is worth: prediction, calibration, closed loop. Writes docs/results/partners.json.

    python scripts/benchmark_partners.py --seeds 5

Two planners a training seed: one with a partner encoder, which is also asked without its latents and without history,
and one that is told the numbers of every style. One robot of three is the partner. Data, planners and measurements are
kept below runs/benchmark/partners: an interrupted benchmark goes on.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from figures import RESULTS, Figure, kept, record, resampled

import diffplan as dp
from diffplan.datasets import run_episode
from diffplan.envs.crossing_partners import HELDOUT_FAMILIES, STYLE_SIZE, TRAINING_FAMILIES, ScriptedPartners, Style
from diffplan.envs.crossing_response import PartneredExpert
from diffplan.evaluation import Interval, episode_seed, mean_interval, share_interval
from diffplan.files import write_json
from diffplan.planners.question import Sampling
from diffplan.spec import seen_by_egos

FOLDER = Path("runs/benchmark/partners")
COMMAND = "python scripts/benchmark_partners.py --seeds {seeds} --episodes {episodes}"
HORIZON, HISTORY, BATCH, WIDTH, DEPTH = 24, 16, 64, 64, 2
DATA_EPISODES = 2_000
ROUNDS = ((2_000, 0.25), (8_000, 0.1))
"""Steps of training, and the share of windows that begin where episodes do: first how to choose, then how to arrive."""
MIX = dp.QuestionMix(
    plan=0.15,
    announced=0.1,
    prefix=0.05,
    goal=0.0,
    forecast=0.0,
    inverse=0.0,
    partial=0.0,
    nothing=0.05,
    partners=0.65,
    forgotten=0.35,
    unknown_latents=0.3,
)
NONE, IN_CONTEXT, INFERRED, TOLD = "no inference", "history in context", "partner encoder", "told the style"
PARTICLES = "particles alone"
VARIANTS = (INFERRED, NONE, IN_CONTEXT, TOLD)
SEEN, HELDOUT = tuple(TRAINING_FAMILIES), tuple(HELDOUT_FAMILIES)
NAMES, PARTNER = ("robot_0", "robot_1", "robot_2"), "robot_2"
OBSERVED = (0, 5, 10, 20)
AHEAD = 20
FORESEEING = Sampling(num_samples=50, num_inference_steps=40)
PARTICLE_COUNT = 20
LATENT_SIZE = {INFERRED: 8, TOLD: STYLE_SIZE}


def record_data() -> None:
    """Records the episodes to learn from, or goes on with them."""
    options = {"env_options": {"num_robots": 3}, "workers": 1}
    dp.collect_episodes("crossing-v0", PartneredExpert, out=FOLDER / "data", episodes=DATA_EPISODES, **options)


def train_planner(kind: str, seed: int) -> dp.DiffusionPlanner:
    """A planner with a partner encoder or one that is told styles; what is there already is read."""
    out = FOLDER / f"{kind}_{seed}".replace(" ", "_")
    if (out / "planner").exists():
        return dp.DiffusionPlanner.from_pretrained(out)
    dataset = dp.load_dataset(FOLDER / "data", HORIZON, HISTORY)
    styles = dp.StyleTable.of(dataset.store, SEEN)
    encoder = dp.PartnerEncoder.for_dataset(dataset, SEEN, seed=seed) if kind == INFERRED else None
    size = {"latent_size": STYLE_SIZE} if kind == TOLD else {}
    planner = dp.DiffusionPlanner.for_dataset(
        dataset, width=WIDTH, depth=DEPTH, partner_encoder=encoder, seed=seed, **size
    )
    for round_, (steps, start_share) in enumerate(ROUNDS):
        dp.train(
            planner,
            dataset,
            steps=steps,
            batch_size=BATCH,
            mix=MIX,
            start_share=start_share,
            styles=styles,
            seed=2 * seed + round_,
            progress=False,
        )
    planner.save_pretrained(out / "planner")
    return planner


def latents_of(variant: str, style: Style, partner: str) -> np.ndarray | None:
    """What a variant is told at plan time; None lets the encoder infer."""
    if variant == INFERRED:
        return None
    latents = np.full((len(NAMES), LATENT_SIZE[TOLD if variant == TOLD else INFERRED]), np.nan, np.float32)
    if variant == TOLD:
        latents[NAMES.index(partner)] = style.vector
    return latents


def recordings(families: Sequence[str], count: int, seed: int) -> list[dp.Trajectory]:
    """Episodes in which egos know the style, from seeds that no data are from."""
    env, expert = dp.make("crossing-v0", num_robots=3), PartneredExpert(tuple(families), switch_share=0.0)
    return [run_episode(env, expert, env.joint_spec, episode_seed(seed, index)) for index in range(count)]


def question(episode: dp.Trajectory, step: int, variant: str) -> dp.Question:
    """What the egos know ``step`` steps into an episode."""
    spec, partner = episode.spec, str(episode.labels["partner"])
    seen = [
        seen_by_egos(dict(zip(NAMES, row, strict=True)), (partner,), spec) for row in episode.observations[: step + 1]
    ]
    done = [{name: row[i] for i, name in enumerate(NAMES) if name != partner} for row in episode.actions[:step]]
    blank = {partner: np.full(spec.action_size, np.nan, np.float32)}
    past = [] if variant == NONE else [(s, {**blank, **a}) for s, a in zip(seen[:-1], done, strict=True)]
    return dp.Question(seen[-1], past, seed=step, latents=latents_of(variant, Style.of_labels(episode.labels), partner))


def predictions(planner: dp.DiffusionPlanner, episodes: list[dp.Trajectory], step: int, variant: str) -> dict[str, Any]:
    """Errors of the partner's predicted path (m), how often the 80 % region holds, and families recognised."""
    questions = [question(episode, step, variant) for episode in episodes]
    plans = planner.answer(questions, FORESEEING)
    rows: dict[str, list[float]] = {"recognised": []}
    for episode, plan in zip(episodes, plans, strict=True):
        partner = str(episode.labels["partner"])
        for name, value in score(plan, episode, step).items():
            rows.setdefault(name, []).append(value)
        if plan.belief is not None and plan.belief.families and episode.labels["family"] in SEEN:
            chances = plan.belief_about(partner)
            rows["recognised"].append(float(max(chances, key=chances.__getitem__) == episode.labels["family"]))
    return rows


def particle_predictions(planner: dp.DiffusionPlanner, episodes: list[dp.Trajectory], step: int) -> dict[str, Any]:
    """The same of particles alone: neither history nor latents, only weights by what was seen."""
    parts = (planner.denoiser, planner.scheduler, planner.normalizer, planner.spec, planner.horizon, planner.history)
    rows: dict[str, list[float]] = {}
    for episode in episodes:
        particles = dp.PartnerParticles(dp.DiffusionPlanner(*parts), [str(episode.labels["partner"])], PARTICLE_COUNT)
        for now in range(step + 1):
            plan = particles.observe(dict(question(episode, now, NONE).observations), seed=now)
        for name, value in score(plan, episode, step).items():
            rows.setdefault(name, []).append(value)
    return rows


def score(plan: dp.Plan, episode: dp.Trajectory, step: int) -> dict[str, float]:
    """How well the partner's candidates foresaw its next steps."""
    partner = str(episode.labels["partner"])
    steps = np.minimum(step + np.arange(AHEAD + 1), len(episode))
    path = episode.observations[steps, NAMES.index(partner)]
    samples, truth = plan.positions(partner)[:, 1 : AHEAD + 1], path[1:, :2]
    shares = np.ones(len(samples)) if plan.values is None else np.exp(plan.values)
    middle = np.average(samples, axis=0, weights=shares)
    straight = path[0, :2] + np.arange(1, AHEAD + 1)[:, None] * episode.spec.dt * path[0, 2:4]
    error, spread = (np.linalg.norm(one - middle, axis=-1) for one in (truth, samples))
    region = np.quantile(spread, 0.8, axis=0, weights=np.repeat(shares[:, None], AHEAD, 1), method="inverted_cdf")
    return {
        "ade": float(error.mean()),
        "constant velocity": float(np.linalg.norm(truth - straight, axis=1).mean()),
        "inside": float((error <= region).mean()),
    }


class Knowing(dp.WithPartners):
    """Egos that at every step are told what a variant is told."""

    variant = INFERRED

    def __call__(self, observations: Sequence[Any]) -> list[Any]:
        told = [latents_of(self.variant, one[PARTNER], PARTNER) for one in self.partners.styles]
        self.policy.tell(told)
        return super().__call__(observations)


def closed_loop(
    planner: dp.DiffusionPlanner, variant: str, families: Sequence[str], switch: bool, episodes: int, seed: int
) -> dict[str, Any]:
    """Success of two egos with one scripted partner."""
    env = dp.make("crossing-v0", num_robots=3)
    policy = dp.RecedingHorizonPolicy(planner, memory=0 if variant == NONE else None)
    partners = ScriptedPartners((PARTNER,), families, env.joint_spec.dt, switch)
    team = Knowing(policy, partners, (PARTNER,), env.joint_spec)
    team.variant = variant
    return dp.evaluate(team, env, episodes=episodes, seed=seed).to_dict()


def measure(seed: int, episodes: int) -> dict[str, dict[str, Any]]:
    """All of one training seed, named by what was done, with which families, knowing what."""
    families = {"seen": SEEN, "heldout": HELDOUT}
    recorded = {label: recordings(names, episodes, 1_000 + seed) for label, names in families.items()}
    found = {}

    def keep(name: str, function: Callable[..., dict[str, Any]], *what: Any) -> None:
        path = FOLDER / f"{name} {seed}.json".replace(" ", "_")
        report = kept(path, episodes, "success" if function is closed_loop else "ade")
        found[name] = function(*what) if report is None else report
        write_json(path, found[name])

    for variant in VARIANTS:
        planner = train_planner(TOLD if variant == TOLD else INFERRED, seed)
        for label in families:
            for step in OBSERVED if variant == INFERRED else (5,):
                keep(f"predict {label} {variant} {step}", predictions, planner, recorded[label], step, variant)
        keep(f"act heldout {variant}", closed_loop, planner, variant, HELDOUT, False, episodes, 1_000 + seed)
        if variant == INFERRED:
            for label in families:
                keep(f"predict {label} {PARTICLES} 5", particle_predictions, planner, recorded[label], 5)
            for way, switch in (("", False), (" switching", True)):
                keep(f"act seen {variant}{way}", closed_loop, planner, variant, SEEN, switch, episodes, 1_000 + seed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=100)
    arguments = parser.parse_args()
    record_data()
    found = [measure(seed, arguments.episodes) for seed in range(arguments.seeds)]
    count, command = arguments.seeds * arguments.episodes, COMMAND.format(**vars(arguments))

    def made(label: str, unit: str, mine: Interval, beside: dict[str, Interval]) -> Figure:
        baselines = {name: made(name, unit, one, {}) for name, one in beside.items()}
        return Figure(label, mine.value, mine.low, mine.high, unit, arguments.seeds, count, command, baselines)

    def figure(label: str, name: str, column: str, beside: dict[str, str], unit: str = "share") -> Figure:
        how = share_interval if column in ("success", "recognised") else mean_interval
        mean = {one: how([seed[one][column] for seed in found]) for one in (name, *beside.values())}
        return made(label, unit, mean[name], {title: mean[one] for title, one in beside.items()})

    figures = []
    for label in ("seen", "heldout"):
        ratios = {v: ratio(found, f"predict {label} {v} 5") for v in (*VARIANTS, PARTICLES)}
        mine = ratios.pop(INFERRED)
        figures.append(made(f"partner_ade_ratio_{label}", "", mine, ratios))
    after = {f"held-out, {step} steps": f"predict heldout {INFERRED} {step}" for step in OBSERVED}
    figures.append(figure("region_80_coverage", f"predict seen {INFERRED} 5", "inside", after))
    after = {f"after {step} steps": f"predict seen {INFERRED} {step}" for step in (0, 5, 20)}
    figures.append(figure("style_accuracy_10", f"predict seen {INFERRED} 10", "recognised", after))
    others = {v: f"act heldout {v}" for v in (NONE, IN_CONTEXT, TOLD)} | {"with seen families": f"act seen {INFERRED}"}
    figures.append(figure("partner_success_heldout", f"act heldout {INFERRED}", "success", others))
    gaps = {v: gap_closed(found, v) for v in (INFERRED, IN_CONTEXT)}
    figures.append(made("inference_gap_closed", "share", gaps[INFERRED], {IN_CONTEXT: gaps[IN_CONTEXT]}))
    names = (f"act seen {INFERRED} switching", f"act seen {INFERRED}")
    columns = [[seed[name]["success"] for seed in found] for name in names]
    recovered = resampled(lambda means: means[0] / np.maximum(means[1], 1e-2), columns)
    figures.append(made("switch_recovery", "share", recovered, {}))
    record(RESULTS / "partners.json", figures)


def ratio(found: list[dict[str, Any]], name: str) -> Interval:
    """Mean error over that of constant velocity."""
    columns = [[seed[name][column] for seed in found] for column in ("ade", "constant velocity")]
    return resampled(lambda means: means[0] / means[1], columns)


def gap_closed(found: list[dict[str, Any]], variant: str) -> Interval:
    """Share of the gap in success from no inference to told-the-style, with held-out partners."""
    columns = [[seed[f"act heldout {v}"]["success"] for seed in found] for v in (variant, NONE, TOLD)]
    return resampled(lambda means: (means[0] - means[1]) / np.maximum(abs(means[2] - means[1]), 1e-2), columns)


if __name__ == "__main__":
    main()
