"""What one plan starts from, and how it is laid out as a grid of known and unknown cells in the network's units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from diffplan.datasets.normalizer import Normalizer
from diffplan.planners.guides import Guide
from diffplan.spec import Actions, JointSpec, Observations
from diffplan.trajectory import Belief, Cells, Plan


@dataclass(frozen=True)
class Question:
    """What one plan starts from.

    Args:
        observations: the present. An agent without a key is absent; an entry that is not finite is unknown (partial
            observability, or a sensor that failed).
        past: (observations, actions) of earlier steps, the latest last.
        given: further known cells: a goal, a partner's announced plan, actions to forecast under; step 0 is now. They
            count less than what is known anyway (the present, static entries), and those with a noise level as that
            well known.
        warm_start: an earlier plan, shifted so that its step 0 is now.
        seed: of this plan's noise.
        latents: what is known of each agent beyond its observation (NaN: nothing), for a denoiser with ``latent_size``;
            None: inferred by the planner's partner encoder, if it has one.
    """

    observations: Mapping[str, Any]
    past: Sequence[tuple[Observations, Actions]] = ()
    given: Cells | None = None
    warm_start: Plan | None = None
    seed: int = 0
    latents: Float[np.ndarray, "N Z"] | None = None

    def __post_init__(self) -> None:
        _check_whole(seed=self.seed)


@dataclass(frozen=True)
class Sampling:
    """How plans are sampled; the arguments of ``DiffusionPlanner.__call__`` that say so, explained there."""

    num_samples: int = 1
    num_inference_steps: int = 5
    warm_start_level: float = 0.7
    decode_actions: bool = False
    return_chain: bool = False
    guides: Sequence[Guide] = ()
    resample: bool = False
    target_return: float | None = None
    guidance_scale: float = 1.0
    realism: float = 0.0
    deadline_ms: float | None = None

    def __post_init__(self) -> None:
        _check_whole(num_samples=self.num_samples, num_inference_steps=self.num_inference_steps)
        for name in ("num_samples", "num_inference_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; ask for at least one.")
        if not 0 < self.warm_start_level <= 1:
            raise ValueError(f"warm_start_level={self.warm_start_level}; choose a noise level in (0, 1].")
        if isinstance(self.guides, Guide) or not all(isinstance(one, Guide) for one in self.guides):
            raise TypeError(
                "guides= takes a list of guides; ConstraintGuide(function) makes one of a function, and keeps plans "
                "where that is 0."
            )
        if self.realism and any(guide.name == "realism" for guide in self.guides):
            raise ValueError("a guide is named 'realism', as the term that realism= adds; give it another name.")
        if self.resample and not self._pulled:
            raise ValueError("resample=True needs guides that move plans (levels=); else every candidate counts alike.")
        if self.resample and self.num_samples < 2:
            raise ValueError("resample=True needs candidates to choose from; give num_samples=2 or more.")
        if not 0 <= self.realism < float("inf"):
            raise ValueError(f"realism={self.realism}; give the weight of the realism term, 0 or more.")
        if self.target_return is not None and not 0 <= self.target_return <= 1:
            raise ValueError(f"target_return={self.target_return}; give a rank among the data, 0 (worst) to 1 (best).")
        if self.target_return is None and self.guidance_scale != 1:
            raise ValueError(f"guidance_scale={self.guidance_scale} needs target_return, the return to go for.")
        if not abs(self.guidance_scale) < float("inf"):
            raise ValueError(f"guidance_scale={self.guidance_scale}; give a finite number.")
        if self.deadline_ms is not None and not 0 < self.deadline_ms < float("inf"):
            raise ValueError(
                f"deadline_ms={self.deadline_ms}; give a positive number of milliseconds, or None for no deadline."
            )

    @property
    def moves(self) -> bool:
        """Whether guides move plans by their gradient, and what comes of that is kept."""
        return self._pulled and not self.resample

    @property
    def _pulled(self) -> bool:
        return any(guide.levels is not None and guide.weight > 0 for guide in self.guides)


def known_grid(
    question: Question, spec: JointSpec, normalizer: Normalizer, horizon: int, history: int
) -> tuple[Float[np.ndarray, "N W D"], Bool[np.ndarray, "N W D"], Bool[np.ndarray, "N W D"], Float[np.ndarray, "N W"]]:
    """Lays a question out: normalised values (NaN where unknown), which of them are known exactly, which entries
    exist, and the noise level above which no cell starts: that of the given cells that have one, else 1.

    Raises ``ValueError`` for what does not fit the spec.
    """
    O, W = spec.observation_size, history + horizon
    present, agent_mask = spec.stack_observations(question.observations)
    if not agent_mask.any():
        raise ValueError(f"no agent is present; observations must name some of {list(spec.names)}.")
    values = np.full((spec.num_agents, W, spec.size), np.nan, np.float32)
    exists = np.repeat((spec.feature_mask & agent_mask[:, None])[:, None], W, axis=1)
    exists[:, :history] = False
    known, ceiling = np.ones_like(exists), np.ones((spec.num_agents, W), np.float32)
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
        values_ahead, known_ahead, exists_ahead = values[:, history:], known[:, history:], exists[:, history:]
        _fill_in(question.given, spec, agent_mask, values_ahead, known_ahead, exists_ahead, ceiling[:, history:])
    values = normalizer.normalize(values, spec.role_index)
    values = np.where(exists, values, 0).astype(np.float32)
    return values, known & ~np.isnan(values), exists, ceiling


def _fill_in(
    given: Cells,
    spec: JointSpec,
    agent_mask: Bool[np.ndarray, "N"],
    values: Float[np.ndarray, "N H D"],
    known: Bool[np.ndarray, "N H D"],
    exists: Bool[np.ndarray, "N H D"],
    ceiling: Float[np.ndarray, "N H"],
) -> None:
    """Puts given cells where nothing is known yet, in place; those with a noise level are ``heard``, not known."""
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
    values[:] = np.where(keep, values, cells)
    known &= ~heard
    ceiling[:] = np.where(heard.any(-1), levels, 1)


def _check_whole(**numbers: Any) -> None:
    for name, number in numbers.items():
        if not isinstance(number, int | np.integer):
            raise ValueError(f"{name}={number!r}; give a whole number.")


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


def warm_grid(
    plan: Plan, spec: JointSpec, normalizer: Normalizer, horizon: int, history: int, num_samples: int
) -> Float[np.ndarray, "S N W D"]:
    """The earlier plan, its best candidates where fewer are wanted, in the network's units; 0 in the known history."""
    cells = plan.grid
    if cells.shape[1:] != (spec.num_agents, horizon, spec.size):
        raise ValueError(f"warm_start is {plan}, expected N={spec.num_agents}, H={horizon}.")
    order = np.arange(len(cells)) if plan.values is None else np.argsort(-plan.values, kind="stable")
    index = np.resize(order if num_samples < len(cells) else np.arange(len(cells)), num_samples)
    normalized = normalizer.normalize(cells[index].astype(np.float32), spec.role_index)
    return np.pad(normalized, ((0, 0), (0, 0), (history, 0), (0, 0)))


def plan_from_grid(
    spec: JointSpec,
    chain: Float[np.ndarray, "K S N H D"],
    exists: Bool[np.ndarray, "N H D"],
    terms: dict[str, Float[np.ndarray, "S"]],
    num_inference_steps: int,
    belief: Belief | None,
) -> Plan:
    """The plan in physical grids of the chain, of which there may be only the last one."""
    chain, O = chain * exists, spec.observation_size
    return Plan(
        spec,
        chain[-1][..., :O],
        chain[-1][..., O:],
        np.asarray(exists[:, 0].any(-1)),
        np.stack([*terms.values()]).sum(0, dtype=np.float64) if terms else None,
        chain if len(chain) > 1 else None,
        terms,
        num_inference_steps,
        belief,
    )
