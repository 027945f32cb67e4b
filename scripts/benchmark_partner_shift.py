"""A partner's style changes for good after pretraining: what fine-tuning wins back. Joins docs/results/finetuning.json.

    python scripts/benchmark_partner_shift.py --seeds 3

Two robots of three are commanded, the third is scripted. Data and planner are those of ``benchmark_partners.py``, made
where missing, with a value function. The new partners are of the held-out family that the pretrained planner copes
with worst, on starts of its own. partner_shift_recovery: success with new partners after fine-tuning beside them, over
that of the pretrained planner (first samples) with the families of the data. partner_shift_forgetting: what success
with these has lost by then. Robots have a safety filter, before and after; figures of robots without end with
``unfiltered``, those of other methods than ``critic`` with their name. Everything is kept below runs/benchmark: an
interrupted benchmark goes on.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import benchmark_partners as partners
import numpy as np
from benchmark_partners import HELDOUT, INFERRED, PARTNER, SEEN
from figures import RESULTS, Figure, kept, one_thread, record, resampled

import diffplan as dp
from diffplan.envs.crossing_partners import ScriptedPartners
from diffplan.evaluation import Interval, mean_interval, share_interval
from diffplan.files import write_json
from diffplan.finetuning import METHODS, Acting
from diffplan.finetuning.loop import AUTO

FOLDER = Path("runs/benchmark/partner_shift")
COMMAND = (
    "python scripts/benchmark_partner_shift.py --method {method} --seeds {seeds} --steps {steps} --episodes {episodes}"
    "{unfiltered}"
)
VALUE_STEPS = 5_000
CHOOSING = 50  # episodes by which the new family is chosen
CHOOSING_SEED = 5_000


def pretrained(seed: int) -> dp.DiffusionPlanner:
    """The planner of ``benchmark_partners`` with a value function."""
    out = FOLDER / f"pretrained_{seed}"
    if not out.exists():
        planner = partners.train_planner(INFERRED, seed)
        value = dp.ValueFunction.for_dataset(dataset_of(planner), seed=seed)
        dp.train_value(value, dataset_of(planner), steps=VALUE_STEPS, seed=seed, progress=False)
        planner.register_modules(value_function=value)
        planner.save_pretrained(out)
    return dp.DiffusionPlanner.from_pretrained(out)


def dataset_of(planner: dp.DiffusionPlanner) -> dp.TrajectoryDataset:
    return dp.load_dataset(partners.FOLDER / "data", planner.horizon, planner.history, planner.normalizer)


def beside(env: Any, families: Sequence[str], safe: bool) -> dict[str, Any]:
    """Options of ``Acting``: the partner, of these families, and whether the others have a safety filter."""
    partners = {"partners": ScriptedPartners((PARTNER,), families, env.joint_spec.dt), "watched": (PARTNER,)}
    return partners | ({"safety": dp.SafetyFilter(**env.robot_limits)} if safe else {})


def run_seed(seed: int, method: str, steps: int, episodes: int, safe: bool) -> dict[str, Any]:
    """Pretrains, chooses new partners, fine-tunes beside them, and tests with old and new; what is there is read."""
    out = FOLDER / f"{method}{'_filtered' * safe}_{steps}_{seed}"
    if (found := kept(out / "result.json", episodes, "new, after")) is not None:
        return found
    env, planner = dp.make("crossing-v0", num_robots=3), pretrained(seed)

    def success(acting: Acting | None, families: Sequence[str], number: int, first: int) -> list[float]:
        """Of the planner as ``acting`` has it, or by its first samples (None)."""
        with_partners = replace(acting or Acting(), **beside(env, families, safe))
        policy = with_partners.plain(planner) if acting is None else with_partners.policy(planner)
        return list(map(float, dp.evaluate(policy, env, episodes=number, seed=first).success))

    tried = {family: success(None, (family,), CHOOSING, CHOOSING_SEED + seed) for family in HELDOUT}
    new, first = (min(tried, key=lambda family: np.mean(tried[family])),), 1_000 + seed
    result: dict[str, Any] = {"tried": tried, "new": new[0]}
    result |= {f"{label}, before": success(None, who, episodes, first) for label, who in (("old", SEEN), ("new", new))}
    report = dp.finetune(
        planner,
        env,
        offline=dataset_of(planner),
        out=out,
        method=method,
        acting=Acting(**beside(env, new, safe)),
        steps=steps,
        score="success",
        evaluate_every=max(1, steps // 4),
        seed=seed,
        resume=True,
        progress=False,
    )
    acting = None if METHODS[method].on_policy else report.acting
    result |= {f"{label}, after": success(acting, who, episodes, first) for label, who in (("old", SEEN), ("new", new))}
    result |= {"way": report.acting.way, "drifts": report.drifts, "offline": report.offline.value}
    result["curve"] = [one["score"] for one in report.rows if "score" in one]
    write_json(out / "result.json", result)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=list(METHODS), default=AUTO)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--unfiltered", action="store_true", help="without a safety filter")
    arguments = parser.parse_args()
    partners.record_data()
    how = (arguments.method, arguments.steps, arguments.episodes, not arguments.unfiltered)
    found = [run_seed(seed, *how) for seed in range(arguments.seeds)]
    command = COMMAND.format(**vars(arguments) | {"unfiltered": " --unfiltered" * arguments.unfiltered})
    count, method = arguments.seeds * arguments.episodes, f"_{arguments.method}" * (arguments.method != AUTO)
    method += "_unfiltered" * arguments.unfiltered

    def figure(label: str, value: Interval, unit: str, others: Sequence[str] = ()) -> Figure:
        beside = {name: figure(name, share_interval([one[name] for one in found]), "share") for name in others}
        return Figure(label, value.value, value.low, value.high, unit, arguments.seeds, count, command, beside)

    columns = {name: [one[name] for one in found] for name in found[0] if name.endswith(("before", "after"))}
    recovery = resampled(
        lambda means: means[0] / np.maximum(means[1], 1e-2), [columns["new, after"], columns["old, before"]]
    )
    lost = [np.subtract(one["old, before"], one["old, after"]) for one in found]
    record(
        RESULTS / "finetuning.json",
        [
            figure(f"partner_shift_recovery{method}", recovery, "ratio", ("old, before", "new, before", "new, after")),
            figure(f"partner_shift_forgetting{method}", mean_interval(lost), "share", ("old, after",)),
        ],
    )


if __name__ == "__main__":
    one_thread()
    main()
