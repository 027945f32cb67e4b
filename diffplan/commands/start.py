"""What a newcomer runs first."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from diffplan.commands.output import show, waiting


@dataclass
class Demo:
    """Does the main job end to end on four robots that swap places: data, training, plans, pictures, a comparison.

    Takes a few minutes; a demo that was interrupted goes on when the same command is given again.

    For example:
      diffplan demo
      diffplan demo --quick --out runs/try

    Args:
        out: folder for everything that it writes.
        quick: tiny sizes, to see in seconds that everything works; the robots will not succeed.
        json: print the report as JSON.
    """

    out: Path = Path("runs/demo")
    quick: bool = False
    json: bool = False

    def run(self) -> None:
        from diffplan.demo import demo

        report = demo(self.out, quick=self.quick, progress=not self.json)
        if self.json:
            show(report, as_json=True)


@dataclass
class Doctor:
    """Says whether this machine can run diffplan, and what to do where it cannot.

    For example:
      diffplan doctor
      diffplan doctor --json

    Args:
        json: print the checks as JSON.
    """

    json: bool = False

    def run(self) -> int:
        from diffplan.doctor import doctor, print_checks

        with waiting("looking", shown=not self.json):
            checks = doctor()
        if not self.json:
            return print_checks(checks)
        print(json.dumps([asdict(check) for check in checks], indent=2))
        return int(any(check.required and not check.ok for check in checks))
