"""Makes docs/results.md and the README's table of docs/results/*.json; ``--check`` only says if they are up to date."""

import argparse
from collections.abc import Iterator

from figures import RESULTS, Figure, read

PAGE, README = RESULTS.with_suffix(".md"), RESULTS.parents[1] / "README.md"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
HEAD = """# Results

Made by `python scripts/make_results.py` of `docs/results/*.json`; do not edit. Intervals hold 95 %. Rows that
begin with "beside" show what the figure above them is compared with.
"""
COLUMNS = "| figure | value | interval | unit | seeds | episodes |\n|---|---|---|---|---|---|"


def row(name: str, figure: Figure) -> str:
    interval = f"{figure.low:.3g} to {figure.high:.3g}"
    return f"| {name} | {figure.value:.3g} | {interval} | {figure.unit} | {figure.seeds} | {figure.episodes:,} |"


def rows(figures: list[Figure]) -> Iterator[str]:
    for figure in figures:
        yield row(f"`{figure.figure}`", figure)
        yield from (row(f"beside: {name}", baseline) for name, baseline in figure.baselines.items())


def section(topic: str, figures: list[Figure]) -> str:
    commands = "\n".join(dict.fromkeys(figure.command for figure in figures))
    return "\n".join([f"## {topic}\n", COLUMNS, *rows(figures), f"\n```bash\n{commands}\n```\n"])


def main_rows() -> str:
    """The figures of docs/results/control.json as the README shows them, each beside its baselines."""
    lines = ["| figure | diffplan | beside it | seeds x episodes | command |", "|---|---|---|---|---|"]
    for one in read(RESULTS / "control.json"):
        beside = ", ".join(f"{name} {baseline.value:.3g}" for name, baseline in one.baselines.items())
        value = f"{one.value:.3g} {one.unit} ({one.low:.3g} to {one.high:.3g})"
        size = f"{one.seeds} x {one.episodes // one.seeds}"
        lines.append(f"| `{one.figure}` | {value} | {beside} | {size} | `{one.command}` |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    check = parser.parse_args().check
    page = "\n".join([HEAD, *(section(path.stem, read(path)) for path in sorted(RESULTS.glob("*.json")))])
    before, _, rest = README.read_text().partition(BEGIN)
    readme = f"{before}{BEGIN}\n{main_rows()}\n{END}{rest.partition(END)[2]}"
    for path, text in ((PAGE, page), (README, readme)):
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            raise SystemExit(f"{path} is out of date; run python scripts/make_results.py.")


if __name__ == "__main__":
    main()
