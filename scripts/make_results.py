"""Makes docs/results.md and the README's table of docs/results/*.json; ``--check`` only says if they are up to date."""

import argparse

from figures import RESULTS, page, read

PAGE, README = RESULTS.with_suffix(".md"), RESULTS.parents[1] / "README.md"
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
    "simple_spread_medium_none",
    "simple_spread_medium_refine",
    "open_team_8_success",
    "open_team_12_success",
    "enter_leave_drop",
    "partner_success_heldout",
    "partner_ade_ratio_heldout",
    "style_accuracy_10",
    "decentral_shared_seed_success",
    "decentral_messages_success",
    "gain_10k_simple_spread",
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
    lines = ["| figure | diffplan | beside it | seeds, episodes | command |", "|---|---|---|---|---|"]
    figures = {one.figure: one for path in RESULTS.glob("*.json") for one in read(path)}
    for one in (figures[name] for name in MAIN if name in figures):
        beside = ", ".join(f"{name} {baseline.value:.3g}" for name, baseline in one.baselines.items())
        value = f"{one.value:.3g} {one.unit} ({one.low:.3g} to {one.high:.3g})"
        size = f"{one.seeds}, {one.episodes:,}"
        lines.append(f"| `{one.figure}` | {value} | {beside} | {size} | `{one.command}` |")
    before, _, rest = README.read_text().partition(BEGIN)
    return "\n".join([f"{before}{BEGIN}\n", *lines, f"\n{END}{rest.partition(END)[2]}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    check = parser.parse_args().check
    for path, text in ((PAGE, page(RESULTS)), (README, readme())):
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            raise SystemExit(f"{path} is out of date; run python scripts/make_results.py.")


if __name__ == "__main__":
    main()
