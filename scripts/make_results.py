"""Makes docs/results.md and the README's table of docs/results/*.json; ``--check`` only says if they are up to date."""

import argparse

from figures import RESULTS, page, read

PAGE, README = RESULTS.with_suffix(".md"), RESULTS.parents[1] / "README.md"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
TOPICS = ("control", "partners", "teams", "guidance", "finetuning", "data")  # in the README, in this order


def readme() -> str:
    """The README with the figures between its marks, each beside its baselines."""
    lines = ["| figure | diffplan | beside it | seeds, episodes | command |", "|---|---|---|---|---|"]
    figures = [one for topic in TOPICS for one in read(RESULTS / f"{topic}.json")]
    for one in sorted(figures, key=lambda figure: figure.unit not in ("share", "points")):  # tasks before speeds
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
