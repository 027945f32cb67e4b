"""Measures that importing is exact: episodes written in each format's layout come back number for number.

Writes ``import_roundtrips`` (to reach: 1) to docs/results/data.json: the share of formats whose episodes, labels,
agents and time step are bit for bit what was written.
"""

import argparse
import tempfile
from pathlib import Path

from figures import RESULTS, Figure, record
from round_trips import ROUND_TRIPS, differences

from diffplan.datasets import import_episodes

COMMAND = "python scripts/benchmark_imports.py"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    exact, episodes = 0, 0
    for name, write in ROUND_TRIPS.items():
        with tempfile.TemporaryDirectory() as folder:
            importer, made = write(Path(folder) / "source")
            store = import_episodes(importer, Path(folder) / "store")
            found = differences(store, made)
        print(f"{name:<20} {'exact' if not found else '; '.join(found[:3])}")
        exact, episodes = exact + (not found), episodes + len(made)
    share = exact / len(ROUND_TRIPS)
    record(RESULTS / "data.json", [Figure("import_roundtrips", share, share, share, "share", 1, episodes, COMMAND)])


if __name__ == "__main__":
    main()
