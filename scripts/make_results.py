"""Makes docs/results.md, docs/benchmarks.md and the README's table of docs/results/*.json.

``--check`` writes nothing and only says if they are up to date.
"""

import argparse
import ast
import re
from collections.abc import Iterator
from dataclasses import replace

from figures import RESULTS, Figure, number, page, read

from diffplan.files import atomic_path

SCRIPTS, ROOT = RESULTS.parents[1] / "scripts", RESULTS.parents[1]
PAGE, BOOK, README = RESULTS.with_suffix(".md"), RESULTS.with_name("benchmarks.md"), ROOT / "README.md"
BOOK_HEAD = """# The benchmark book

What each benchmark measures, on which data, by which protocol, and what came of it beside what it is compared with.
Made of the scripts' own words and `docs/results/*.json` (again by `python scripts/make_results.py`); do not edit.
Intervals hold 95 %; those of what stands beside a figure are in [results.md](results.md). Figures of others are as
they were published, with the place, or what their code was measured to take on a core like ours.
"""
COLUMNS = "| figure | diffplan | baselines and variants | seeds, episodes | command |\n|---|---|---|---|---|"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
README_COLUMNS = "| what | diffplan | baselines and variants | seeds, episodes | command |\n|---|---|---|---|---|"
MAIN = {
    "crossing_open_4_success": "4 robots cross, all at their goals without contact",
    "crossing_open_8_success": "8 robots cross",
    "zero_shot_8_success": "8 robots, by a planner of 4 and 6",
    "open_team_12_success": "12 robots, by a planner of 2 to 6, with guides and filter",
    "crossing_doorway_4_success": "4 robots, one doorway",
    "crossing_obstacles_4_success": "4 robots among pillars",
    "transport_3_success": "3 robots push a heavy box to its place",
    "two_arm_lift_success": "two arms lift a pot (robosuite)",
    "announced_plan_agreement": "plans agree with what one robot announced",
    "simple_spread_expert_score": "simple_spread, expert data; 100: the expert",
    "simple_spread_medium_score": "simple_spread, medium data, best guidance",
    "simple_spread_replay_score": "simple_spread, data of all skills, best guidance",
    "simple_spread_random_score": "simple_spread, random data, best guidance",
    "expert_loss_simple_spread": "simple_spread, expert data: what refined actions lose",
    "transport_medium_score": "transport, medium data, best guidance",
    "expert_loss_transport": "transport, expert data: what plans moved by values lose",
    "halfcheetah_2x3_medium_score": "HalfCheetah-2x3, medium data, best guidance",
    "crossing_8_filtered_contact_free": "8 robots among pillars, safety filter: no contact",
    "gain_100k_simple_spread": "fine-tuning, 100,000 steps, simple_spread: score after / by imitation before",
    "gain_100k_crossing_doorway": "the same, doorway",
    "gain_100k_transport": "the same, transport",
    "gain_100k_transport_best_half": "the same, transport, by imitation of the better half",
    "random_200k_simple_spread": "from random data, 200,000 steps, simple_spread",
    "co_learning_4_10k_crossing_doorway": "4 robots at a doorway, each learns for itself, 10,000 steps",
    "speedup_over_scratch": "steps of SAC from scratch / ours (at least: SAC did not get there)",
    "partner_shift_recovery": "a partner changes for good: success after 20,000 steps / with the old before",
    "partner_shift_recovery_unfiltered": "the same, without a safety filter",
    "partner_success_heldout": "success beside partners of unseen families",
    "partner_ade_ratio_heldout": "their forecast error / constant velocity's",
    "style_accuracy_10": "their style identified after 10 steps",
    "decentral_messages_success": "4 planners without a centre, talking",
    "decentral_shared_seed_success": "silent, with a shared seed",
    "sensing_gap_recovered": "6 robots that sense 0.8 m far: share of the loss that talking recovers",
    "eth_ucy_marginal_ade": "pedestrians (ETH/UCY), each by itself, best of 20",
    "eth_ucy_joint_ade": "whole scenes, best of 20",
    "eth_joint_published_ade": "eth's scenes by the protocol of arXiv 2305.06292",
    "nba_rebound_joint_ade": "basketball, whole scenes, best of 20",
    "overcooked_next_action_accuracy": "people's next action in Overcooked, accuracy",
    "forecast_error_ratio": "world model: error after 10 steps / constant velocity's",
    "plan_latency_ms": "one plan, 4 robots, one core",
    "candidates_64_latency_ms": "64 candidates",
    "guided_64_latency_ms": "64 candidates, moved by a value function",
    "decentral_replan_ms": "one robot of a talking team listens, plans and speaks",
    "filter_latency_ms": "safety filter, 10 robots",
}  # figures in the README, in this order, in plain words


def readme() -> str:
    """The README with the main figures between its marks, each beside what is like it."""
    figures = {one.figure: one for one in all_figures()}
    lines = [readme_row(words, figures[name]) for name, words in MAIN.items() if name in figures]
    before, _, rest = README.read_text().partition(BEGIN)
    return "\n".join([f"{before}{BEGIN}\n", README_COLUMNS, *lines, f"\n{END}{rest.partition(END)[2]}"])


def readme_row(words: str, one: Figure) -> str:
    """Beside a figure stands what has its unit; beside a ratio, what it is one of, too."""
    alike = {name: beside for name, beside in one.baselines.items() if one.unit in ("ratio", beside.unit)}
    return row(replace(one, baselines=alike)).replace(f"`{one.figure}`", words)


def book() -> str:
    """Every benchmark in its own words, with its figures."""
    found: dict[str, list[Figure]] = {}
    for one in all_figures():
        found.setdefault(re.findall(r"scripts/(\w+)\.py", one.command)[0], []).append(one)
    return "\n".join([BOOK_HEAD, *(chapter(script, found[script]) for script in sorted(found))])


def chapter(script: str, figures: list[Figure]) -> str:
    words = ast.get_docstring(ast.parse((SCRIPTS / f"{script}.py").read_text())) or ""
    lines = [
        f"    {line.strip()}" if line.startswith("    ") else line.replace("``", "`") for line in words.splitlines()
    ]
    return "\n".join([f"## {script.removeprefix('benchmark_')}\n", *lines, f"\n{COLUMNS}", *map(row, figures), ""])


def all_figures() -> Iterator[Figure]:
    for path in sorted(RESULTS.glob("*.json")):
        yield from read(path)


def row(one: Figure) -> str:
    beside = ", ".join(f"{name} {number(baseline.value)}" for name, baseline in one.baselines.items())
    unit = "" if one.unit in ("", "share", "ratio") else f" {one.unit}"
    value = f"{number(one.value)}{unit} ({number(one.low)} to {number(one.high)})"
    return f"| `{one.figure}` | {value} | {beside} | {one.seeds}, {one.episodes:,} | `{one.command}` |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    check = parser.parse_args().check
    for path, text in ((PAGE, page(RESULTS)), (BOOK, book()), (README, readme())):
        if not check:
            with atomic_path(path) as temporary:
                temporary.write_text(text)
        elif not path.exists() or path.read_text() != text:
            raise SystemExit(f"{path} is out of date; run python scripts/make_results.py.")


if __name__ == "__main__":
    main()
