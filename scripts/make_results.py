"""Makes docs/results.md of docs/results/*.json. With ``--check`` it only says whether the page is up to date."""

import argparse
from collections.abc import Iterator

from figures import RESULTS, Figure, read

PAGE = RESULTS.with_suffix(".md")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    check = parser.parse_args().check
    page = "\n".join([HEAD, *(section(path.stem, read(path)) for path in sorted(RESULTS.glob("*.json")))])
    if not check:
        PAGE.write_text(page)
    elif not PAGE.exists() or PAGE.read_text() != page:
        raise SystemExit(f"{PAGE} is out of date; run python scripts/make_results.py.")


if __name__ == "__main__":
    main()
