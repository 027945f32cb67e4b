"""The nouns everybody shares, and the alphabet of shapes.

A joint trajectory is a grid of cells, agent x step; each cell holds that agent's observation and action.

====== =========================================================== ======
letter meaning                                                     unit
====== =========================================================== ======
B      batch
S      candidate samples of one plan
N      agents
L      steps of one episode (L actions, L + 1 observations)
H      horizon: planned environment steps, the present one first
O      observation width (the widest agent's; others are padded)
A      action width (likewise)
D      O + A, the width of one cell
====== =========================================================== ======

``NaN`` in an observation or in ``Cells`` means *unknown*; an agent without a key is *absent*: its cells leave the grid.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int

from diffplan.files import atomic_path
from diffplan.spec import Actions, JointSpec

ROWS, STEPS = ("observations", "agent_mask"), ("actions", "rewards", "terminations", "truncations")
"""The arrays of a ``Trajectory``: those with L + 1 rows, and those with one row a step."""


@dataclass(frozen=True)
class Trajectory:
    """One recorded episode of all agents: L actions and the L + 1 observations around them, in physical units.

    ``labels`` says plain things about the episode (skill, style, seed, success); the model never sees them unless
    asked.
    """

    spec: JointSpec
    observations: Float[np.ndarray, "L+1 N O"]
    actions: Float[np.ndarray, "L N A"]
    rewards: Float[np.ndarray, "L N"]
    terminations: Bool[np.ndarray, "L N"]
    truncations: Bool[np.ndarray, "L N"]
    agent_mask: Bool[np.ndarray, "L+1 N"]
    labels: dict[str, str | int | float | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        L, N = len(self.actions), self.spec.num_agents
        expected = {
            "observations": (L + 1, N, self.spec.observation_size),
            "actions": (L, N, self.spec.action_size),
            "rewards": (L, N),
            "terminations": (L, N),
            "truncations": (L, N),
            "agent_mask": (L + 1, N),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"{name} has shape {getattr(self, name).shape}, expected {shape} for {L} steps of {self.spec}."
                )
        for name in ("terminations", "truncations", "agent_mask"):
            array = getattr(self, name)
            if array.dtype != bool and not np.isin(array, (0, 1)).all():
                raise ValueError(f"{name} holds other values than true and false, 1 and 0.")
            object.__setattr__(self, name, array.astype(bool, copy=False))
        for name in ("observations", "actions", "rewards"):
            if getattr(self, name).dtype.kind not in "fiub":
                raise ValueError(f"{name} is an array of {getattr(self, name).dtype}, expected numbers.")
            with np.errstate(over="ignore"):
                bad = np.argwhere(~np.isfinite(getattr(self, name).astype(np.float32, copy=False)))
            if len(bad):
                step, agent = bad[0][:2]
                raise ValueError(
                    f"{name} is not finite at step {step}, agent {self.spec.names[agent]!r} ({len(bad)} such numbers), "
                    "as float32."
                )

    def __len__(self) -> int:
        return len(self.actions)

    def __repr__(self) -> str:
        size = f"{len(self)} steps, {self.spec.num_agents} agents"
        return f"Trajectory({size}, return {self.returns.sum():.2f}, {self.labels})"

    @property
    def returns(self) -> Float[np.ndarray, "N"]:
        """Sum of each agent's rewards."""
        return np.asarray(self.rewards.sum(0))

    def after(self, step: int, rows: int | None = None) -> Self:
        """What happened from a step on: all, or so many rows of observations, as far as there are."""
        end = len(self) + 1 if rows is None else step + rows
        parts = {name: getattr(self, name)[step : end - (name in STEPS)] for name in (*ROWS, *STEPS)}
        return dataclasses.replace(self, **parts)

    def among(self, spec: JointSpec, columns: Sequence[int] | Int[np.ndarray, "n"]) -> Self:
        """The same episode as one of other agents: those in these columns, which ``spec`` describes."""
        widths = {"observations": spec.observation_size, "actions": spec.action_size}
        parts = {name: getattr(self, name)[:, columns] for name in (*ROWS, *STEPS)}
        parts |= {name: parts[name][..., :width] for name, width in widths.items()}
        return dataclasses.replace(self, spec=spec, **parts)

    @classmethod
    def from_steps(
        cls,
        spec: JointSpec,
        observations: Sequence[Mapping[str, Any]],
        actions: Sequence[Mapping[str, Any]],
        rewards: Sequence[Mapping[str, float]],
        terminations: Sequence[Mapping[str, bool]],
        truncations: Sequence[Mapping[str, bool]],
        labels: Mapping[str, str | int | float | bool] | None = None,
    ) -> Self:
        """Stacks the dictionaries of a PettingZoo roll-out: L + 1 observations, L of everything else."""
        if len(observations) != len(actions) + 1:
            raise ValueError(
                f"{len(observations)} observations for {len(actions)} actions; expected one more than actions."
            )
        for what, steps in {"rewards": rewards, "terminations": terminations, "truncations": truncations}.items():
            if foreign := sorted({name for step in steps for name in step} - set(spec.names)):
                raise ValueError(f"{what} of agents {foreign}, but the spec has {list(spec.names)}.")
        stacked = [spec.stack_observations(one) for one in observations]

        def column(steps: Sequence[Mapping[str, Any]], dtype: type) -> np.ndarray:
            return np.array([[step.get(name, 0) for name in spec.names] for step in steps], dtype).reshape(
                len(steps), spec.num_agents
            )

        return cls(
            spec,
            np.stack([one for one, _ in stacked]),
            np.array([spec.stack_actions(one)[0] for one in actions], np.float32).reshape(
                len(actions), spec.num_agents, spec.action_size
            ),
            column(rewards, np.float32),
            column(terminations, np.bool_),
            column(truncations, np.bool_),
            np.stack([mask for _, mask in stacked]),
            dict(labels or {}),
        )


@dataclass(frozen=True)
class Cells:
    """A partly filled grid in physical units, NaN where unknown: a question to the planner, or a message between
    robots.

    Step 0 is the present. Observations and actions may be known independently, entry by entry.

    ``noise_level`` says how well a cell is known. 0 (or None): exactly. A level l above 0 and below 1: as by a
    measurement whose standard deviation is l / (1 - l) in the normaliser's units, e.g. what a partner intended some
    time ago; such a cell is given whole.
    """

    observations: Float[np.ndarray, "N H O"]
    actions: Float[np.ndarray, "N H A"]
    noise_level: Float[np.ndarray, "N H"] | None = None

    @classmethod
    def unknown(cls, spec: JointSpec, horizon: int) -> Self:
        """A grid in which nothing is known."""
        N, O, A = spec.num_agents, spec.observation_size, spec.action_size
        return cls(np.full((N, horizon, O), np.nan, np.float32), np.full((N, horizon, A), np.nan, np.float32))

    def merge(self, other: "Cells") -> "Cells":
        """The cells of both; where both know an entry, ``other`` wins, and where it knows any, its noise level."""
        observations = np.where(np.isnan(other.observations), self.observations, other.observations)
        actions = np.where(np.isnan(other.actions), self.actions, other.actions)
        if self.noise_level is None and other.noise_level is None:
            return Cells(observations, actions)
        told = ~(np.isnan(other.observations).all(-1) & np.isnan(other.actions).all(-1))
        old, new = (0.0 if level is None else level for level in (self.noise_level, other.noise_level))
        return Cells(observations, actions, np.where(told, new, old).astype(np.float32))


@dataclass(frozen=True)
class Belief:
    """What every agent is taken to be like: a latent (NaN where nothing is known), and a probability a family.

    ``families`` may be empty: then there are no words for it.
    """

    latents: Float[np.ndarray, "N Z"]
    families: tuple[str, ...]
    probabilities: Float[np.ndarray, "N F"]


@dataclass(frozen=True)
class Plan:
    """S candidate joint plans for N agents over H steps, in physical units; step 0 is the present.

    ``values`` ranks the candidates (higher is better; of equal ones the first is best); it is the sum of ``terms``, one
    per guide. ``chain`` holds the noise and the sample after every denoising step, the plan last;
    ``num_inference_steps`` says how many steps these were: a deadline may have cut them. ``belief`` is what the plan
    takes the agents to be like.
    """

    spec: JointSpec
    observations: Float[np.ndarray, "S N H O"]
    actions: Float[np.ndarray, "S N H A"]
    agent_mask: Bool[np.ndarray, "N"]
    values: Float[np.ndarray, "S"] | None = None
    chain: Float[np.ndarray, "K S N H D"] | None = None
    terms: dict[str, Float[np.ndarray, "S"]] = field(default_factory=dict)
    num_inference_steps: int | None = None
    belief: Belief | None = None

    def __post_init__(self) -> None:
        S, _, H = (*self.observations.shape, 0, 0, 0)[:3]
        if not S or not H:
            raise ValueError(f"observations of the plan: shape {self.observations.shape}; it has samples, and steps.")
        N, O, A = self.spec.num_agents, self.spec.observation_size, self.spec.action_size
        found = {"observations": self.observations, "actions": self.actions, "agent_mask": self.agent_mask}
        expected = {"observations": (S, N, H, O), "actions": (S, N, H, A), "agent_mask": (N,)}
        if self.values is not None:
            found["values"], expected["values"] = self.values, (S,)
        if self.chain is not None:
            found["chain"], expected["chain"] = self.chain, (len(self.chain), S, N, H, O + A)
        for name, term in self.terms.items():
            found[f"term {name!r}"], expected[f"term {name!r}"] = term, (S,)
        for name, shape in expected.items():
            if found[name].shape != shape:
                raise ValueError(f"{name} of the plan: shape {found[name].shape}, expected {shape} for {self.spec}.")

    def __repr__(self) -> str:
        S, N, H, _ = self.observations.shape
        present = int(self.agent_mask.sum())
        named = f" ({' + '.join(self.terms)})" if self.terms else ""
        values = "" if self.values is None else f", values{named} {self.values.min():.2f}..{self.values.max():.2f}"
        chain = "" if self.chain is None else f", chain of {len(self.chain) - 1} steps"
        return (
            f"Plan(S={S} samples, N={N} agents ({present} present), H={H} steps of {self.spec.dt:g} s{values}{chain})"
        )

    @property
    def num_samples(self) -> int:
        """S, how many candidates."""
        return len(self.observations)

    @property
    def horizon(self) -> int:
        """H, planned steps, the present one included."""
        return self.observations.shape[2]

    @property
    def present(self) -> list[str]:
        """The agents that are there."""
        return list(itertools.compress(self.spec.names, self.agent_mask))

    @property
    def grid(self) -> Float[np.ndarray, "S N H D"]:
        """Observations and actions side by side, as cells."""
        return np.concatenate((self.observations, self.actions), axis=-1)

    @property
    def is_finite(self) -> bool:
        """Whether every number of every candidate is finite, so that robots may act by it."""
        return bool(np.isfinite(self.observations).all() and np.isfinite(self.actions).all())

    @property
    def best_index(self) -> int:
        """Which candidate has the highest value; the first one where there are no values."""
        return 0 if self.values is None else int(np.argmax(self.values))

    def best(self) -> "Plan":
        """The candidate of highest value (see ``best_index``), as a plan with S = 1."""
        return self.sample(self.best_index)

    def sample(self, index: int) -> "Plan":
        """One candidate, as a plan with S = 1. Raises ``IndexError`` when there is none of this index."""
        if not -self.num_samples <= index < self.num_samples:
            raise IndexError(f"sample {index} of a plan of {self.num_samples}.")
        keep = slice(index, index + 1 or None)  # to the end, not to 0, where index is -1
        values = None if self.values is None else self.values[keep]
        chain = None if self.chain is None else self.chain[:, keep]
        return dataclasses.replace(
            self,
            observations=self.observations[keep],
            actions=self.actions[keep],
            values=values,
            chain=chain,
            terms={name: term[keep] for name, term in self.terms.items()},
        )

    def with_term(self, name: str, term: Float[np.ndarray, "S"]) -> "Plan":
        """The plan with one more term, which counts in ``values``."""
        others = 0 if self.values is None else self.values.astype(np.float64) - self.terms.get(name, 0)
        return dataclasses.replace(self, terms={**self.terms, name: term}, values=others + term)

    def actions_at(self, step: int) -> Actions:
        """{agent: action} of the best candidate at a planned step, for the present agents, within their bounds."""
        if not 0 <= step < self.horizon:
            raise ValueError(f"step={step} is outside the plan of {self.horizon} steps (0..{self.horizon - 1}).")
        best = self.best()
        return self.spec.unstack_actions(best.actions[0, :, step], self.agent_mask, best.observations[0, :, step])

    def positions(self, agent: str) -> Float[np.ndarray, "S H P"]:
        """Where one agent is planned to be (m), for every candidate."""
        self._check_agents(agent)
        position = list(self.spec.role_of(agent).position)
        if not position:
            raise ValueError(f"agent {agent!r} has no position entries in its observation; set Role.position.")
        return self.observations[:, self.spec.names.index(agent)][..., position]

    def cells(self, *agents: str) -> Cells:
        """What these agents intend (the best candidate's cells): an announcement that another robot can plan around.

        Raises ``ValueError`` for an agent that the plan does not have, or that is absent and so intends nothing.
        """
        self._check_agents(*agents)
        if absent := [name for name in agents if name not in self.present]:
            raise ValueError(f"agents {absent} are absent from the plan, so there is nothing to announce for them.")
        cells, best = Cells.unknown(self.spec, self.horizon), self.best()
        for index in map(self.spec.names.index, agents):
            cells.observations[index], cells.actions[index] = best.observations[0, index], best.actions[0, index]
        return cells

    def _check_agents(self, *agents: str) -> None:
        unknown = [name for name in agents if name not in self.spec.agents]
        if unknown:
            raise ValueError(f"the plan has no agents {unknown}; it has {list(self.spec.agents)}.")

    def belief_about(self, agent: str) -> dict[str, float]:
        """{family of styles: probability} of one agent. Raises ``ValueError`` where the plan holds no such belief."""
        self._check_agents(agent)
        if self.belief is None or not self.belief.families:
            raise ValueError("the plan holds no belief; plan with a planner whose partner_encoder knows families.")
        return dict(
            zip(self.belief.families, self.belief.probabilities[self.spec.names.index(agent)].tolist(), strict=True)
        )

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, whole or not at all."""
        from safetensors.numpy import save_file

        arrays = {name: getattr(self, name) for name in ("observations", "actions", "agent_mask", "values", "chain")}
        arrays |= {f"terms/{name}": term for name, term in self.terms.items()}
        if self.belief is not None:
            arrays |= {f"belief/{name}": getattr(self.belief, name) for name in ("latents", "probabilities")}
        present = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
        with atomic_path(path) as temporary:
            facts: dict[str, Any] = {"spec": self.spec.to_dict(), "num_inference_steps": self.num_inference_steps}
            facts |= {"families": self.belief.families} if self.belief is not None else {}
            save_file(present, temporary, metadata={name: json.dumps(fact) for name, fact in facts.items()})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what ``save`` wrote. Raises ``ValueError`` naming the file when it is damaged or something else."""
        from safetensors import SafetensorError, safe_open

        if Path(path).is_dir():
            raise ValueError(f"{path} is a folder, no saved plan; name the file that Plan.save wrote.")
        try:
            with safe_open(path, "numpy") as file:
                facts = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
                spec, steps = JointSpec.from_dict(facts.get("spec", {})), facts.get("num_inference_steps")
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if arrays["agent_mask"].dtype != bool or not isinstance(steps, int | None):
                raise TypeError("agent_mask is not of truth values, or num_inference_steps no number")
            names = [name for name in arrays if name.startswith("terms/")]
            terms = {name.removeprefix("terms/"): arrays.pop(name) for name in names}
            beliefs = {
                name: arrays.pop(f"belief/{name}") for name in ("latents", "probabilities") if "families" in facts
            }
            belief = Belief(families=tuple(facts["families"]), **beliefs) if beliefs else None
            return cls(spec, **arrays, terms=terms, num_inference_steps=steps, belief=belief)
        except (SafetensorError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise ValueError(f"{path} is not a saved plan ({error}); write one with Plan.save.") from error
