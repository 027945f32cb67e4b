"""Questions laid out as grids of known and unknown cells in the network's units, and plans made of such grids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffplan.planners.question import Question
from diffplan.spec import JointSpec
from diffplan.trajectory import Belief, Cells, Plan

if TYPE_CHECKING:
    from diffplan.planners.planner import DiffusionPlanner


@dataclass(frozen=True)
class Grid:
    """Questions side by side, as a sampler sees them.

    Args:
        values: normalised cells, NaN where unknown, 0 where nothing exists.
        known: entries that keep their value.
        exists: entries of agents that are there.
        ceiling: the noise level above which no cell starts: below 1 where one is given with a noise level.
        now: the step of the present, the first that is planned.
    """

    values: Float[Tensor, "B N W D"]
    known: Bool[Tensor, "B N W D"]
    exists: Bool[Tensor, "B N W D"]
    ceiling: Float[Tensor, "B N W"]
    now: int

    @classmethod
    def of(cls, planner: "DiffusionPlanner", questions: Sequence[Question]) -> Self:
        """Lays questions out. Raises ``ValueError`` for what does not fit the planner's spec."""
        parts = zip(*(_cells(planner, question) for question in questions), strict=True)
        values, known, exists, ceiling = (torch.from_numpy(np.stack(p)).to(planner.device) for p in parts)
        return cls(values, known, exists, ceiling, planner.history)

    @property
    def given(self) -> Bool[Tensor, "B N W D"]:
        """Entries that exist and are known."""
        return self.known & self.exists

    @property
    def present(self) -> Bool[Tensor, "B N"]:
        """Who is there now."""
        return self.exists[:, :, self.now].any(-1)

    def impose(self, noisy: Float[Tensor, "B S N W D"]) -> Float[Tensor, "BS N W D"]:
        """Candidates of which known entries have their value, and nothing is where nothing exists."""
        known, values, exists = (part[:, None] for part in (self.known, self.values, self.exists))
        return (torch.where(known, values, noisy) * exists).flatten(0, 1)

    def hint(self, noisy: Float[Tensor, "B S N W D"], level: float) -> Float[Tensor, "B S N W D"]:
        """Candidates at a noise level, with their values in cells that are given with that noise level or a lower one.

        Cells that are less well known say nothing to a warm start.
        """
        told = ~self.values.isnan() & (self.ceiling <= level)[..., None]
        return torch.where(told[:, None], ((1 - self.ceiling[..., None]) * self.values)[:, None], noisy)

    def for_candidates(
        self, number: int
    ) -> tuple[Bool[Tensor, "_ N W D"], Bool[Tensor, "_ N W D"], Float[Tensor, "_ N W"]]:
        """What is known, exists, and the ceilings, of so many candidates in all; once where questions do not differ."""
        parts = (self.known, self.exists, self.ceiling)
        alike = all((part == part[:1]).all() for part in parts)
        known, exists, ceiling = (
            part[:1] if alike else part.repeat_interleave(number // len(part), 0) for part in parts
        )
        return known, exists, ceiling


def _cells(
    planner: "DiffusionPlanner", question: Question
) -> tuple[Float[np.ndarray, "N W D"], Bool[np.ndarray, "N W D"], Bool[np.ndarray, "N W D"], Float[np.ndarray, "N W"]]:
    """Lays a question out: normalised values (NaN where unknown), which of them are known exactly, which entries
    exist, and the noise level above which no cell starts: that of the given cells that have one, else 1.

    Raises ``ValueError`` for what does not fit the spec.
    """
    spec, history = planner.spec, planner.history
    O, W = spec.observation_size, history + planner.horizon
    present, agent_mask = spec.stack_observations(question.observations)
    if not agent_mask.any():
        raise ValueError(f"no agent is present; observations must name some of {list(spec.names)}.")
    values = np.full((spec.num_agents, W, spec.size), np.nan, np.float32)
    exists = np.repeat((spec.feature_mask & agent_mask[:, None])[:, None], W, axis=1)
    exists[:, :history] = False
    heard, ceiling = np.zeros_like(exists), np.ones((spec.num_agents, W), np.float32)
    values[:, history, :O] = present
    past = tuple(question.past)[-history:] if history else ()
    if any(not isinstance(one, tuple | list) or len(one) != 2 for one in past):
        raise ValueError("past holds a pair of (observations, actions), dictionaries by agent, for each earlier step.")
    for step, (observations, actions) in enumerate(past, start=history - len(past)):
        values[:, step, :O], was_there = spec.stack_observations(observations)
        acted, did = spec.stack_actions(actions)
        values[:, step, O:] = np.where(did[:, None], acted, np.nan)
        exists[:, step] = spec.feature_mask & was_there[:, None]
    static = spec.static_mask[:, None, :O] & ~np.isfinite(values[..., :O])
    values[..., :O] = np.where(static, present[:, None], values[..., :O])
    values = np.where(np.isfinite(values), values, np.float32(np.nan))
    if question.given is not None:
        filled = _filled_in(question.given, spec, agent_mask, values[:, history:], exists[:, history:])
        values[:, history:], heard[:, history:], ceiling[:, history:] = filled
    values = planner.normalizer.normalize(values, spec.role_index)
    values = np.where(exists, values, 0).astype(np.float32)
    return values, ~heard & ~np.isnan(values), exists, ceiling


def _filled_in(
    given: Cells,
    spec: JointSpec,
    agent_mask: Bool[np.ndarray, "N"],
    values: Float[np.ndarray, "N H D"],
    exists: Bool[np.ndarray, "N H D"],
) -> tuple[Float[np.ndarray, "N H D"], Bool[np.ndarray, "N H D"], Float[np.ndarray, "N H"]]:
    """The values with given cells where nothing was known yet, which of them were only heard, as they were given with
    a noise level, and above which level those cells do not start."""
    cells = np.concatenate((given.observations, given.actions), axis=-1)
    if cells.shape != values.shape:
        raise ValueError(f"given cells have shape {cells.shape}, expected {values.shape}.")
    cells, levels = np.where(np.isfinite(cells), cells, np.float32(np.nan)), _levels(given)
    absent = [name for i, name in enumerate(spec.names) if not agent_mask[i] and np.isfinite(cells[i]).any()]
    if absent:
        raise ValueError(f"cells of absent agents {absent} are given; add them to observations (NaN if unseen).")
    noisy = (levels > 0)[..., None]
    heard = noisy & np.isnan(values) & exists
    if (heard & np.isnan(cells)).any():
        agent, step = np.argwhere((heard & np.isnan(cells)).any(-1))[0]
        raise ValueError(
            f"the given cell of {spec.names[agent]!r} at step {step} has noise level {levels[agent, step]:g} "
            "but NaN entries; give it whole, or with noise level 0."
        )
    keep = np.isnan(cells) | ~np.isnan(values) | (noisy & ~heard)
    return np.where(keep, values, cells), heard, np.where(heard.any(-1), levels, np.float32(1))


def _levels(given: Cells) -> Float[np.ndarray, "N H"]:
    """The noise levels of given cells, 0 where nothing is given."""
    shape = given.actions.shape[:2]
    levels = np.zeros(shape, np.float32) if given.noise_level is None else given.noise_level
    if levels.shape != shape or not ((levels >= 0) & (levels < 1)).all():
        raise ValueError(
            f"the noise levels of given cells have shape {levels.shape} and range from {np.min(levels)} to "
            f"{np.max(levels)}; expected {shape}, from 0 (exact) to below 1 (nothing known: give NaN instead)."
        )
    nothing = np.isnan(given.observations).all(-1) & np.isnan(given.actions).all(-1)
    return np.where(nothing, np.float32(0), levels).astype(np.float32)


def warm_grid(planner: "DiffusionPlanner", plan: Plan, num_samples: int) -> Float[np.ndarray, "S N W D"]:
    """The earlier plan, its best candidates where fewer are wanted, in the network's units; 0 in the known history."""
    cells, spec = plan.grid, planner.spec
    if cells.shape[1:] != (spec.num_agents, planner.horizon, spec.size):
        raise ValueError(f"warm_start is {plan}, expected N={spec.num_agents}, H={planner.horizon}.")
    order = np.arange(len(cells)) if plan.values is None else np.argsort(-plan.values, kind="stable")
    index = np.resize(order if num_samples < len(cells) else np.arange(len(cells)), num_samples)
    normalized = planner.normalizer.normalize(cells[index].astype(np.float32), spec.role_index)
    return np.pad(normalized, ((0, 0), (0, 0), (planner.history, 0), (0, 0)))


def plans_from_chain(
    planner: "DiffusionPlanner",
    chain: Sequence[Float[Tensor, "B S N W D"]],
    grid: Grid,
    terms: Mapping[str, Float[Tensor, "B S"]],
    beliefs: Sequence[Belief | None],
    num_inference_steps: int,
) -> list[Plan]:
    """The plan of each of B questions, in physical units, of a chain that may hold its last step only."""
    spec, O, history = planner.spec, planner.spec.observation_size, planner.history
    cells = [planner.normalizer.unnormalize(step.cpu().numpy(), spec.role_index) for step in chain]
    exists = grid.exists[:, :, history:].cpu().numpy()
    ahead = np.stack(cells)[..., history:, :] * exists[:, None]
    told = {name: term.cpu().numpy() for name, term in terms.items()}
    return [
        Plan(
            spec,
            ahead[-1, i, ..., :O],
            ahead[-1, i, ..., O:],
            np.asarray(exists[i, :, 0].any(-1)),
            np.stack([term[i] for term in told.values()]).sum(0, dtype=np.float64) if told else None,
            ahead[:, i] if len(ahead) > 1 else None,
            {name: term[i] for name, term in told.items()},
            num_inference_steps,
            belief,
        )
        for i, belief in enumerate(beliefs)
    ]
