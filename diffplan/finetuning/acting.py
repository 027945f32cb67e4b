"""How a fine-tuned planner acts: how far its critics are trusted, what keeps robots apart, and beside whom."""

from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffplan.evaluation import Policy
from diffplan.partners import TeamOfPolicies, WithPartners
from diffplan.planners.guides import Estimate, Guide, ValueGuide
from diffplan.planners.planner import DiffusionPlanner
from diffplan.planners.policy import RecedingHorizonPolicy
from diffplan.planners.refinement import PRICE, check_candidates
from diffplan.planners.safety import SafetyFilter
from diffplan.spec import JointSpec

WAYS: tuple[dict[str, Any], ...] = (
    {"refine": 0.0},
    {"refine": 1.0, "refine_price": 0.4},
    {"refine": 1.0, "refine_price": 0.1},
    {"refine": 1.0, "refine_price": 0.0},
    {"refine": 0.0, "guided": True, "num_samples": 1},
)
"""How acting may trust the critics, of which the best is found out: to rank, to refine at a price, to bend one plan.
Critics that are right about what data do can be wrong beside it, and get better."""
PLAIN: dict[str, Any] = {"refine": 0.0, "guided": False, "num_samples": 1}
"""By first samples, as the planner was given."""

Team: TypeAlias = RecedingHorizonPolicy | WithPartners | TeamOfPolicies


@dataclass
class Exploration(Guide):
    """Makes the candidate of highest value a random one, drawn in proportion to exp(value).

    The largest of value + Gumbel noise is such a draw (arXiv 1411.0030). A candidate keeps its noise over an
    episode, and stays itself through warm starts: exploring is following another plan, not trembling.

    Args:
        gumbel: noise of every candidate.
    """

    gumbel: Float[Tensor, "S"]
    weight: float = 1.0
    levels: tuple[float, float] | None = None
    name: str = "exploration"

    def log_weight(self, estimate: Estimate) -> Float[Tensor, "B S"]:
        B, S = estimate.normalized.shape[:2]
        return self.gumbel.to(estimate.normalized)[:S].expand(B, S)

    @classmethod
    def draw(cls, num_samples: int, rng: np.random.Generator) -> "Exploration":
        """Noise for so many candidates (two at least, with which guides are tried)."""
        return cls(torch.from_numpy(rng.gumbel(size=max(2, num_samples)).astype(np.float32)))


@dataclass(frozen=True)
class Acting:
    """How a fine-tuned planner acts, in training and in tests.

    The method ``"gradient"`` acts by a plan's first sample, whatever the first five settings are.

    Args:
        num_samples: candidates a plan, ranked by the value function; two at least to ``refine``.
        value_weight: of the value in the ranking; exploring draws candidates in proportion to exp(weight x value).
        guided: whether the value's gradient moves plans as they are denoised, too, with that weight.
        refine: how far the critics may move first actions, see ``RecedingHorizonPolicy``; None: this, its price,
            ``guided`` and ``num_samples`` are those of ``WAYS`` that score best before the first round, or of first
            samples, if these score higher; later every evaluation tries another way, too, which takes over if it
            scores higher; and at the end, four times the candidates, where there is a choice of them.
        refine_price: what such a move must gain, see ``RecedingHorizonPolicy``; only with ``refine``.
        safety: keeps robots apart, also while exploring.
        partners: drives the agents ``watched``, e.g. ``ScriptedPartners``; the planner does not command them, nor see
            their static entries.
        watched: the partners' names.
    """

    num_samples: int = 8
    value_weight: float = 4.0
    guided: bool = False
    refine: float | None = None
    refine_price: float = PRICE
    safety: SafetyFilter | None = None
    partners: Policy | None = None
    watched: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples={self.num_samples}; at least one candidate is needed.")
        for name in ("value_weight", "refine"):
            number = getattr(self, name)
            if number is not None and not 0 <= number < float("inf"):
                raise ValueError(f"{name}={number}; give a finite number, 0 or more.")
        check_candidates(self.num_samples, self.refine)
        if not 0 <= self.refine_price < float("inf"):
            raise ValueError(f"refine_price={self.refine_price}; give a share of the returns' spread, 0 or more.")
        if self.refine is None and (self.refine_price != PRICE or self.guided):
            raise ValueError(
                f"refine_price={self.refine_price} and guided={self.guided} are of a given refine; without one, "
                "they are tried out."
            )

    @classmethod
    def of(cls, planner: DiffusionPlanner) -> Self:
        """How a planner that ``finetune`` saved acts best: ``Acting.of(planner).policy(planner)`` does.

        Raises:
            ValueError: it is not fine-tuned, one of several learners, of method ``"gradient"``, or acts beside
                partners, whose drivers are not saved.
        """
        told = planner.provenance
        if "acting" not in told:
            raise ValueError("the planner was not fine-tuned; act by RecedingHorizonPolicy(planner).")
        acting = told["acting"]
        if told["method"] == "gradient":
            raise ValueError("method='gradient' acts by first samples: RecedingHorizonPolicy(planner).")
        if told["each"]:
            raise ValueError("the planner is one of several learners; act by TeamOfPolicies, or by diffplan evaluate.")
        if acting["watched"]:
            raise ValueError(f"the planner acts beside partners {acting['watched']}; give these: Acting(partners=...).")
        safety = acting["safety"] and SafetyFilter(**acting["safety"])
        best = {name: told[name] for name in ("num_samples", "guided", "refine", "refine_price")}
        return cls(**best, value_weight=acting["value_weight"], safety=safety or None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; of who drives the partners only the kind."""
        safety = self.safety and {f.name: getattr(self.safety, f.name) for f in fields(self.safety) if f.init}
        partners = None if self.partners is None else type(self.partners).__name__
        others = {"safety": safety, "partners": partners, "watched": list(self.watched)}
        return self.way | {"value_weight": self.value_weight} | others

    @property
    def way(self) -> dict[str, Any]:
        """What of it is tried where ``refine`` is None."""
        return {name: getattr(self, name) for name in ("num_samples", "guided", "refine", "refine_price")}

    def policy(self, planner: DiffusionPlanner, exploration: Exploration | None = None) -> Team:
        """Follows the planner's value function; with ``exploration`` it draws candidates instead of choosing."""
        if planner.value_function is None:
            raise ValueError("the planner has no value function to rank plans by; train one with train_value.")
        value = ValueGuide(planner.value_function, weight=self.value_weight)
        guides: list[Guide] = [value if self.guided else replace(value, levels=None)]
        guides += [] if exploration is None else [exploration]
        if self.num_samples == 1:  # what only ranks has nothing to do
            guides = [guide for guide in guides if guide.levels is not None]
        policy = RecedingHorizonPolicy(
            planner,
            num_samples=self.num_samples,
            guides=guides,
            refine=self.refine or 0.0,
            refine_price=self.refine_price,
            partners=self.watched,
            safety=self.safety,
        )
        return self.beside_partners(policy, planner.spec)

    def plain(self, planner: DiffusionPlanner) -> Team:
        """Acts by first samples."""
        policy = RecedingHorizonPolicy(planner, safety=self.safety, partners=self.watched)
        return self.beside_partners(policy, planner.spec)

    def beside_partners(self, policy: RecedingHorizonPolicy | TeamOfPolicies, spec: JointSpec) -> Team:
        """The policy for all agents, of which the partners drive theirs."""
        return policy if self.partners is None else WithPartners(policy, self.partners, self.watched, spec)
