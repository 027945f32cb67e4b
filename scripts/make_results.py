"""Makes docs/results.md, docs/benchmarks.md and the README's table of docs/results/*.json.

``--check`` writes nothing and only says if they are up to date.
"""

import argparse
import ast
import re
from collections.abc import Iterator

from figures import RESULTS, Figure, page, read

from diffplan.files import atomic_path

SCRIPTS, ROOT = RESULTS.parents[1] / "scripts", RESULTS.parents[1]
PAGE, BOOK, README = RESULTS.with_suffix(".md"), RESULTS.with_name("benchmarks.md"), ROOT / "README.md"
BOOK_HEAD = """# The benchmark book

What each benchmark measures, on which data, by which protocol, and what came of it beside what it is compared with.
Made of the scripts' own words and `docs/results/*.json` (again by `python scripts/make_results.py`); do not edit.
Intervals hold 95 %; those of what stands beside a figure are in [results.md](results.md). Figures of others are as
they were published, with the place.
"""
COLUMNS = "| figure | diffplan | beside it | seeds, episodes | command |\n|---|---|---|---|---|"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
MAIN = (
    "crossing_open_4_success",
    "announced_plan_agreement",
    "crossing_open_8_success",
    "zero_shot_8_success",
    "crossing_doorway_4_success",
    "crossing_obstacles_4_success",
    "transport_3_success",
    "two_arm_lift_success",
    "simple_spread_expert_score",
    "simple_spread_medium_none",
    "simple_spread_medium_refine",
    "simple_spread_random_ranking_refine",
    "crossing_medium_ranking",
    "transport_medium_none",
    "transport_medium_gradient",
    "crossing_8_filtered_contact_free",
    "crossing_8_filtered_success",
    "open_team_8_success",
    "open_team_12_success",
    "enter_leave_drop",
    "partner_success_heldout",
    "partner_ade_ratio_heldout",
    "style_accuracy_10",
    "region_80_coverage",
    "decentral_shared_seed_success",
    "decentral_messages_success",
    "team_missed_steps",
    "gain_100k_simple_spread",
    "gain_100k_crossing_doorway",
    "gain_100k_transport",
    "random_100k_simple_spread",
    "speedup_over_scratch",
    "partner_shift_recovery",
    "partner_shift_forgetting",
    "partner_shift_recovery_filtered",
    "partner_shift_forgetting_filtered",
    "eth_ucy_marginal_ade",
    "eth_ucy_joint_ade",
    "nba_rebound_joint_ade",
    "overcooked_next_action_accuracy",
    "forecast_error_ratio",
    "plan_latency_ms",
    "candidates_64_latency_ms",
    "guided_64_latency_ms",
    "decentral_replan_ms",
    "filter_latency_ms",
    "training_20gb_rss_gb",
)  # figures in the README, in this order


def readme() -> str:
    """The README with the main figures between its marks, each beside its baselines."""
    figures = {one.figure: one for one in all_figures()}
    lines = [row(figures[name]) for name in MAIN if name in figures]
    before, _, rest = README.read_text().partition(BEGIN)
    return "\n".join([f"{before}{BEGIN}\n", COLUMNS, *lines, f"\n{END}{rest.partition(END)[2]}"])


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
    beside = ", ".join(f"{name} {baseline.value:.3g}" for name, baseline in one.baselines.items())
    unit = "" if one.unit in ("", "share", "ratio") else f" {one.unit}"
    value = f"{one.value:.3g}{unit} ({one.low:.3g} to {one.high:.3g})"
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
