"""The questions that a planner learns to answer: random masks of known cells, and noise levels for the others."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

KINDS = ("plan", "announced", "prefix", "goal", "forecast", "inverse", "partial", "nothing", "partners", "waypoints")
SHARES = ("forgotten", "unknown_latents", "independent_levels", "conditional")


@dataclass(frozen=True)
class QuestionMix:
    """How often each kind of question is asked in training; the shares are relative to their sum.

    In all but ``partial`` and ``nothing`` the history and the present observation of every agent are known.

    Args:
        plan: nothing else is known: plan for the team.
        announced: a random set of agents has told its whole future (or only its observations).
        prefix: the first steps of the horizon are known too, a random number of them.
        goal: random agents' last observation is known.
        forecast: all actions are known: how does the world evolve?
        inverse: all observations are known: which actions lead there?
        partial: of a random set of agents only what others can sense is known, their history and present without the
            static entries (their goals); of a random part of these nothing is.
        nothing: the unconditional model.
        partners: of the partners (a random set of agents where data do not say who they are) neither static entries nor
            actions are known: they are only watched.
        waypoints: random agents' observations at a few random steps of the horizon are known.
        forgotten: share of windows that show the network no history.
        unknown_latents: share of agents whose latent the network is not told, where it takes latents.
        independent_levels: share of windows in which every patch of cells has a noise level of its own.
        conditional: share of windows that tell the return of their episode, where the network takes returns.
        level_shift: 1 draws all noise levels alike; larger draws high ones more often (arXiv 2403.03206, eq. 23).
    """

    plan: float = 0.5
    announced: float = 0.2
    prefix: float = 0.1
    goal: float = 0.04
    forecast: float = 0.04
    inverse: float = 0.04
    partial: float = 0.04
    nothing: float = 0.04
    partners: float = 0.0
    waypoints: float = 0.0
    forgotten: float = 0.0
    unknown_latents: float = 0.25
    independent_levels: float = 0.25
    conditional: float = 0.8
    level_shift: float = 3.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < float("inf") or (name in SHARES and value > 1):
                raise ValueError(f"{name}={value}; give 0 or more{', at most 1' * (name in SHARES)}.")
        if not any(getattr(self, name) for name in KINDS) or not self.level_shift:
            raise ValueError(f"one of {KINDS} must be asked, and level_shift be more than 0; got {self}.")


def draw_known(
    mix: QuestionMix,
    exists: Bool[Tensor, "B N W D"],
    static: Bool[Tensor, "N D"],
    history: int,
    observation_size: int,
    generator: torch.Generator,
    partners: Bool[Tensor, "B N"] | None = None,
) -> Bool[Tensor, "B N W D"]:
    """Draws one question a window and returns which of its existing entries are known."""
    B, N, W, D = exists.shape
    kind = torch.multinomial(torch.tensor([float(getattr(mix, name)) for name in KINDS]), B, True, generator=generator)

    def asked(name: str) -> Tensor:
        return (kind == KINDS.index(name))[:, None, None, None]

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    step = torch.arange(W)[:, None]
    observation = (torch.arange(D) < observation_size)[None]
    some_agents = draw(B, N, 1, 1) < draw(B, 1, 1, 1)
    prefix_length = (draw(B, 1, 1, 1) * (W - history)).floor()
    present = (step < history) | ((step == history) & observation)
    known = present | static[:, None]
    known = known | (asked("announced") & some_agents & (observation | (draw(B, 1, 1, 1) < 0.5)))
    known = known | (asked("prefix") & (step < history + prefix_length))
    known = known | (asked("goal") & some_agents & (step == W - 1) & observation)
    known = known | (asked("forecast") & ~observation) | (asked("inverse") & observation)
    if mix.waypoints:
        few = draw(B, 1, W, 1) < draw(B, 1, 1, 1) ** 3
        known = known | (asked("waypoints") & some_agents & few & observation)
    watched = some_agents if partners is None else partners[:, :, None, None]
    known = known & ~(asked("partners") & watched & (static[:, None] | ~observation))
    hidden = asked("partial") & some_agents
    unseen = hidden & (draw(B, N, 1, 1) < draw(B, 1, 1, 1))
    return known & ~(hidden & static[:, None]) & ~unseen & ~asked("nothing") & exists


def draw_levels(
    mix: QuestionMix,
    unknown_cell: Bool[Tensor, "B N W"],
    patch_size: int,
    generator: torch.Generator,
) -> Float[Tensor, "B N W"]:
    """Draws noise levels in (0, 1]: one a window, or one a patch of cells; 0 where a cell is known whole."""
    B, N, W = unknown_cell.shape
    shared = torch.rand(B, 1, 1, generator=generator).expand(B, N, W)
    apart = torch.rand(B, N, W // patch_size, generator=generator).repeat_interleave(patch_size, -1)
    independent = torch.rand(B, 1, 1, generator=generator) < mix.independent_levels
    level = 1 - torch.where(independent, apart, shared)
    return mix.level_shift * level / (1 + (mix.level_shift - 1) * level) * unknown_cell


def draw_forgotten(
    mix: QuestionMix, batch_size: int, history: int, window: int, generator: torch.Generator
) -> Bool[Tensor, "B 1 W 1"]:
    """Which cells the network is not shown because they are past."""
    if not mix.forgotten:
        return torch.zeros(batch_size, 1, window, 1, dtype=torch.bool)
    chosen = torch.rand(batch_size, 1, 1, 1, generator=generator) < mix.forgotten
    return chosen & (torch.arange(window) < history)[:, None]


def draw_returns(mix: QuestionMix, ranks: Float[Tensor, "B"], generator: torch.Generator) -> Float[Tensor, "B"]:
    """The windows' returns, NaN where it is not told (classifier-free guidance, arXiv 2207.12598)."""
    told = torch.rand(len(ranks), generator=generator) < mix.conditional
    return torch.where(told, ranks, torch.nan)


def held_beyond_the_end(
    cells: Float[Tensor, "B N W D"],
    exists: Bool[Tensor, "B N W D"],
    features: Bool[Tensor, "N D"],
    history: int,
    observation_size: int,
) -> tuple[Float[Tensor, "B N W D"], Bool[Tensor, "B N W D"]]:
    """What the network is shown of a window that reaches beyond its episode's end, and which entries it is shown.

    A planner never knows where an episode ends: it plans all H steps of every agent that is present. So training, too,
    shows those agents' cells beyond the end, as if the last observation held. They are context, not data: no loss is
    taken on them. (Cutting them from the grid instead makes plans near an episode's end break down.)
    """
    there = exists.any(-1)
    step = torch.arange(cells.shape[2])
    last = torch.where(there, step, 0).amax(-1, keepdim=True)
    shown = torch.where(step > history, there[..., history, None], there)
    held = cells.take_along_dim(last[..., None], dim=2) * (torch.arange(cells.shape[-1]) < observation_size)
    return torch.where(there[..., None], cells, held) * shown[..., None], shown[..., None] & features[:, None]
