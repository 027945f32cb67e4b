"""Eight robots among pillars with the safety filter on, beside it off; joins docs/results/guidance.json.

    python scripts/benchmark_safety.py --seeds 5

Pillars stand elsewhere in every episode. All but "without guides" are guided
by separation and clearance. An episode is free of contacts when no robot touched anything in any of its steps. Data,
planners and evaluations are those of ``benchmark_control.py``, and kept where that keeps its own.
"""

import argparse
from collections.abc import Callable
from typing import Any

from benchmark_control import FOLDER, JOINT, ROWS, SAFE, UNGUIDED, collect, train_and_evaluate
from figures import RESULTS, Figure, one_thread, record

from diffplan.evaluation import share_interval

ROW = "crossing_obstacles_8"
COMMAND = "python scripts/benchmark_safety.py --seeds {seeds} --episodes {episodes}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=100)
    arguments = parser.parse_args()
    seeds, episodes = arguments.seeds, arguments.episodes
    collect(ROWS[ROW], FOLDER / ROW / "data")
    reports = {
        variant: [train_and_evaluate(ROW, variant, seed, episodes) for seed in range(seeds)]
        for variant in (JOINT, SAFE, UNGUIDED)
    }

    def figure(label: str, variant: str, column: Callable[[dict[str, Any]], list[float]]) -> Figure:
        found = share_interval([column(report) for report in reports[variant]])
        command = COMMAND.format(seeds=seeds, episodes=episodes)
        return Figure(label, found.value, found.low, found.high, "share", seeds, seeds * episodes, command)

    columns: dict[str, Callable[[dict[str, Any]], list[float]]] = {
        "contact_free": lambda report: [float(contacts == 0) for contacts in report["contacts"]],
        "success": lambda report: report["success"],
    }
    figures = []
    for name, column in columns.items():
        figures.append(figure(f"crossing_8_filtered_{name}", SAFE, column))
        beside = {"with guides only": JOINT, UNGUIDED: UNGUIDED}
        figures[-1].baselines.update({label: figure(label, variant, column) for label, variant in beside.items()})
    record(RESULTS / "guidance.json", figures)


if __name__ == "__main__":
    one_thread()
    main()
