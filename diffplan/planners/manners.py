"""How robots of a team plan and talk, and what that costs."""

from dataclasses import dataclass, field

from diffplan.planners.policy import PlanningStats


@dataclass(frozen=True)
class Manners:
    """How the robots of a team plan and talk; all have the same.

    Args:
        speak: tell the others what one intends.
        shared_seed: draw the same noise as the others (which costs nothing), else each its own.
        num_inference_steps: denoising steps of a plan from noise.
        warm_start_level: noise level from which later plans start, on the shifted last plan, in one step.
        tolerance: speak when what one intends is farther than this from what one told, at the step where it is most
            (in the normaliser's units, standard deviations of the data for a Gaussian one; positions, where the role
            has any).
        surprise: likewise, how far what a partner tells may be from what one expected of it to count as the same way.
        repeat_every: speak after so many steps anyway: messages get lost.
        told_std: how well a cell is known that was told in this step: a standard deviation, in the same units.
        aging_std: how much that grows with every step since.
        stride: steps between two told cells.
        bits: of a number in a message, 8 or 16.
        bytes_per_second: what one robot may send; a second's worth, or a message's, can be saved up. None: anything.
        senses_all: robots sense all that are there, so who is not sensed is not there: in open teams that see far.
            Else it may be anywhere, and is planned for.

    Raises:
        ValueError: settings that make no sense.
    """

    speak: bool = True
    shared_seed: bool = True
    num_inference_steps: int = 10
    warm_start_level: float = 0.7
    tolerance: float = 0.1
    surprise: float = 0.5
    repeat_every: int = 10
    told_std: float = 1.0
    aging_std: float = 0.1
    stride: int = 4
    bits: int = 16
    bytes_per_second: float | None = None
    senses_all: bool = False

    def __post_init__(self) -> None:
        for name in ("tolerance", "surprise", "told_std", "aging_std", "bytes_per_second"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value}; give a finite number, 0 or more.")
        for name, most in (("num_inference_steps", float("inf")), ("repeat_every", float("inf")), ("stride", 255)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)}; give 1 step or more{', at most 255' * (most == 255)}.")
        if not 0 < self.warm_start_level <= 1:
            raise ValueError(f"warm_start_level={self.warm_start_level}; choose a noise level in (0, 1].")
        if self.bits not in (8, 16):
            raise ValueError(f"bits={self.bits}; choose 8 or 16.")


@dataclass(repr=False)
class TeamStats(PlanningStats):
    """What planning and talking cost a team.

    Args:
        sent: messages sent, each to all others.
        bytes_sent: their size.
        lost: of what was sent, arrivals at one robot that did not happen (where the link is simulated).
        unaffordable: messages that were due and not sent, for want of budget.
        refused: bytes that were no message of this team: malformed, damaged, foreign, or from the future.
        stale: messages older than what was known already, or with nothing in them that is still to come.
        duplicates: messages that had been heard already.
        gave_way: plans that were begun anew because an earlier robot's did not fit.
        consistency: after every step, how far what robots plan for each other is from what these plan (m).
    """

    sent: int = 0
    bytes_sent: int = 0
    lost: int = 0
    unaffordable: int = 0
    refused: int = 0
    stale: int = 0
    duplicates: int = 0
    gave_way: int = 0
    consistency: list[float] = field(default_factory=list)
