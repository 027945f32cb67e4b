"""More motions out of few: windows turned, mirrored and scaled, as the world does not mind, and measured less well."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffplan.spec import JointSpec


@dataclass(frozen=True)
class Augmentation:
    """How training changes positions, velocities and goals of a whole window.

    Only for worlds in which the changed motions are as likely, and for entries in one unit and scale: with the
    normalizer ``"motion"``. Actions and obstacles would stay as they are, so agents may have none; so do entries that
    their roles do not describe, which should have no direction: name velocities (``Role.velocity``).

    Args:
        turn: turn by any angle. Idle where the network sees agents in their own frames.
        mirror: mirror every second window.
        scale: draw a factor from 1 / ``scale`` to ``scale``; 1: none.
        jitter: measure past and present positions of every second window with an error of at most this standard
            deviation, mostly less: u^2 of it, u drawn evenly for each window. In the normalizer's unit, how far agents
            stray from going straight on. For tracks measured less well in some places than in others; 0: none.
    """

    turn: bool = False
    mirror: bool = False
    scale: float = 1.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.jitter < float("inf"):
            raise ValueError(f"jitter={self.jitter}; give the largest standard deviation, 0 or more.")
        if not 1 <= self.scale < float("inf"):
            raise ValueError(f"scale={self.scale}; give the greatest factor, 1 or more.")

    def check(self, spec: JointSpec, normalizer: str) -> None:
        """Raises ``ValueError`` unless agents have positions of two entries that are scaled alike, and no actions."""
        wrong = [name for name, role in spec.roles.items() if len(role.position) != 2]
        if normalizer != "motion":
            raise ValueError(
                f"augmentation with normalizer={normalizer!r}; load the dataset with normalizer='motion' (--normalizer "
                "motion)."
            )
        if wrong:
            raise ValueError(f"augmentation turns positions of two entries, and the roles {wrong} have none.")
        if fixed := [name for name, role in spec.roles.items() if role.action_size or role.obstacles]:
            raise ValueError(
                f"augmentation changes positions, velocities and goals, but roles {fixed} have actions or obstacles, "
                "which would stay; leave it out."
            )

    @staticmethod
    def untouched(spec: JointSpec) -> list[str]:
        """Observation entries that stay as they are, under augmentation and in agents' own frames."""
        return [
            f"{name} observation[{entry}]"
            for name, role in spec.roles.items()
            for entry in range(role.observation_size)
            if entry not in {*role.position, *role.velocity, *role.goal, *role.legal}
        ]

    def __call__(
        self, cells: Float[Tensor, "B N W D"], spec: JointSpec, history: int, generator: torch.Generator
    ) -> Float[Tensor, "B N W D"]:
        """The windows, changed; all agents of a window alike, but for the errors. Step ``history`` is the present."""
        draw = torch.rand(3, len(cells), generator=generator)
        angle = 2 * torch.pi * draw[0] * self.turn
        flip = 1 - 2 * ((draw[1] < 0.5) & self.mirror).float()
        size = self.scale ** (2 * draw[2] - 1)
        change = torch.stack((angle.cos(), -angle.sin() * flip, angle.sin(), angle.cos() * flip), -1)
        change = (size[:, None] * change).reshape(-1, 1, 2, 2)
        if self.jitter:
            drawn = 2 * torch.rand(len(cells), 1, 1, 1, generator=generator) - 1
            std = self.jitter * drawn.clamp(min=0) ** 2
        changed = cells.clone()
        for index, role in enumerate(spec.roles.values()):
            agents = torch.from_numpy(spec.role_index[: cells.shape[1]] == index)
            for pair in (role.position, role.velocity, role.goal):
                if pair:
                    entries = changed[..., list(pair)]
                    changed[..., list(pair)] = torch.where(agents[:, None, None], entries @ change.mT, entries)
            if self.jitter:
                past = changed[:, :, : history + 1][..., list(role.position)]
                noise = std * torch.randn(past.shape, generator=generator)
                changed[:, :, : history + 1, list(role.position)] = past + noise * agents[:, None, None]
        return changed
