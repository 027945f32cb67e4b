"""Measures what starting costs: processor time of ``import diffplan`` and ``diffplan --help`` in a fresh interpreter.

Writes ``import_cpu_s`` (to reach: < 0.2) and ``help_cpu_s`` (< 0.5) to docs/results/control.json. The interpreter's own
start is included; beside each stands that start alone, and importing torch. "Episodes" are interpreters.
"""

import argparse
import resource
import subprocess
import sys

from figures import RESULTS, Figure, median, record

COMMAND = "python scripts/benchmark_startup.py"
REPEATS = 30
HELP = "import sys; from diffplan.cli import main; sys.argv = ['diffplan', '--help']; main()"


def cpu_seconds(code: str) -> float:
    """User and system time of one fresh interpreter that runs ``code``."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(figure: str, code: str, repeats: int, baselines: dict[str, Figure]) -> Figure:
    """The median over ``repeats`` interpreters, after one that warms the disk cache."""
    cpu_seconds(code)
    times = [cpu_seconds(code) for _ in range(repeats)]
    return median(figure, times, "s", 0, repeats, COMMAND, baselines)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    beside = {
        "the interpreter alone": measure("interpreter_cpu_s", "pass", REPEATS, {}),
        "import torch": measure("torch_cpu_s", "import torch", 5, {}),
    }
    figures = [
        measure("import_cpu_s", "import diffplan", REPEATS, beside),
        measure("help_cpu_s", HELP, REPEATS, beside),
    ]
    record(RESULTS / "control.json", figures)


if __name__ == "__main__":
    main()
