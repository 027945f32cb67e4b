"""Makes docs/results.md of docs/results/*.json. With ``--check`` it only says whether the page is up to date."""

import argparse

from figures import RESULTS, page, write_page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    written = RESULTS.with_suffix(".md")
    if not parser.parse_args().check:
        write_page(RESULTS)
    elif not written.exists() or written.read_text() != page(RESULTS):
        raise SystemExit(f"{written} is out of date; run python scripts/make_results.py.")


if __name__ == "__main__":
    main()
