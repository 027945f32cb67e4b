"""What ``diffplan`` can do: one dataclass a command. Fields are flags, the docstring is the help, ``run`` does it.

Everything heavy is imported inside ``run``, so that help stays instant.
"""

from typing import Protocol

from diffplan.commands.data import DATA
from diffplan.commands.episodes import Collect
from diffplan.commands.finetuning import Finetune
from diffplan.commands.forecasts import Forecast
from diffplan.commands.group import Group
from diffplan.commands.guidance import Guidance
from diffplan.commands.pictures import Plot
from diffplan.commands.plans import MakePlan
from diffplan.commands.runs import Evaluate, Train
from diffplan.commands.start import Demo, Doctor
from diffplan.commands.teams import Team


class Command(Protocol):
    """What every command is."""

    def run(self) -> int | None:
        """Does it; returns the exit code where that can be other than 0."""


COMMANDS: dict[str, type[Command] | Group] = {
    "collect": Collect,
    "data": DATA,
    "train": Train,
    "finetune": Finetune,
    "plan": MakePlan,
    "evaluate": Evaluate,
    "forecast": Forecast,
    "team": Team,
    "guidance": Guidance,
    "plot": Plot,
    "demo": Demo,
    "doctor": Doctor,
}
