"""A fixed number of futures, made at once by a network that was taught to have one of them right.

Samples say what may happen, as often as it does; a few of them say little. A network that is taught by the best of its
answers alone (arXiv 1612.00197, section 3) spreads them over what may happen as means of clusters are
(``representatives``), without drawing hundreds of samples first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float

from diffplan.planner_folder import find_planner
from diffplan.planners.grid import Grid, plans_from_chain
from diffplan.planners.planner import DiffusionPlanner
from diffplan.planners.question import Question
from diffplan.planners.saving import FUTURES, load_components, load_provenance
from diffplan.spec import Actions, JointSpec, Observations
from diffplan.trajectory import Cells, Plan

CODE_STD = 0.5  # of what tells futures apart, before training


@dataclass(frozen=True)
class Futures:
    """A planner whose denoiser is told which of its futures to draw, and draws it in one step, of no noise.

    Args:
        planner: its denoiser takes latents: which future, one of ``latent_size``.
        per_agent: futures are right agent by agent; those of one index are no joint future.

    Raises:
        ValueError: the planner was not made by ``of``.

    Example:
        ``futures = Futures.of(planner); train_futures(futures, dataset); plan = futures(observations)``
    """

    planner: DiffusionPlanner
    per_agent: bool = False

    def __post_init__(self) -> None:
        if not self.planner.denoiser.config.latent_size or self.planner.partner_encoder is not None:
            raise ValueError("this planner samples; make it one of futures by Futures.of(planner, count=20).")

    @classmethod
    def of(cls, planner: DiffusionPlanner, count: int = 20, *, per_agent: bool = False, seed: int = 0) -> Self:
        """Futures to be trained, from a planner's weights, which it keeps.

        Args:
            planner: trained. What it infers of partners, values and returns plays no part.
            count: how many futures.
            per_agent: each agent shall have its own right one among them, instead of all agents one together.
            seed: of what tells futures apart at first.

        Raises:
            TypeError: ``planner`` is no ``DiffusionPlanner``.
            ValueError: ``count`` is not a positive whole number.
        """
        if not isinstance(planner, DiffusionPlanner):
            raise TypeError(f"planner is a {type(planner).__name__}; give a trained DiffusionPlanner.")
        if not isinstance(count, int | np.integer) or count < 1:
            raise ValueError(f"count={count}; ask for a whole number of futures, at least one.")
        config = planner.denoiser.settings
        with torch.random.fork_rng(devices=[]):
            network = type(planner.denoiser)(**config | {"latent_size": count})
        denoiser = network.eval().to(planner.device)
        weights = {k: v for k, v in planner.denoiser.state_dict().items() if not k.startswith("embed_latent.")}
        codes = CODE_STD * torch.randn(config["width"], count + 1, generator=torch.Generator().manual_seed(seed))
        denoiser.load_state_dict(weights | {"embed_latent.weight": codes})
        own = DiffusionPlanner(
            denoiser, planner.scheduler, planner.normalizer, planner.spec, planner.horizon, planner.history
        )
        own.precision, own.provenance = planner.precision, dict(planner.provenance)
        return cls(own, per_agent)

    @property
    def count(self) -> int:
        """How many futures."""
        return int(self.planner.denoiser.config.latent_size)

    def for_agents(self, spec: JointSpec) -> Self:
        """The same for another team of the same roles. Raises as ``DiffusionPlanner.for_agents``."""
        return replace(self, planner=self.planner.for_agents(spec))

    def __call__(
        self,
        observations: Mapping[str, Any],
        *,
        past: Sequence[tuple[Observations, Actions]] = (),
        given: Cells | None = None,
    ) -> Plan:
        """All futures as a plan's candidates, none better than the others; always the same ones.

        Args:
            observations: as of ``DiffusionPlanner.__call__``.
            past: likewise.
            given: likewise, without noise levels.

        Raises:
            ValueError: agents, widths or cells that do not fit.
        """
        return self.answer([Question(observations, past, given)])[0]

    @torch.inference_mode()
    def answer(self, questions: Sequence[Question]) -> list[Plan]:
        """All futures of each question. Raises as a call, and ``ValueError`` for a warm start or latents."""
        if any(one.warm_start is not None or one.latents is not None for one in questions):
            raise ValueError("futures are drawn in one step, which takes no warm_start, and told apart by the latents.")
        return [self._answered(one) for one in questions]

    def _answered(self, question: Question) -> Plan:
        planner, grid = self.planner, Grid.of(self.planner, [question])
        if (grid.ceiling < 1).any():
            raise ValueError("futures take no given cells with a noise level; give them whole, or not at all.")
        sample = torch.where(grid.known, grid.values, 0).expand(self.count, -1, -1, -1)
        codes = torch.from_numpy(self.codes()).to(sample)
        estimate = planner.estimator(grid.known, grid.exists, self.count, latents=codes)
        cells = torch.where(grid.known, sample, estimate(sample, 1.0))
        return plans_from_chain(planner, [cells[None]], grid, {}, [None], 1)[0]

    def codes(self) -> Float[np.ndarray, "S N S"]:
        """What the denoiser is told for each future; where futures are each agent's own, in an order of its own."""
        one = np.eye(self.count, dtype=np.float32)
        order = np.random.default_rng(0) if self.per_agent else None
        agents = range(self.planner.spec.num_agents)
        return np.stack([one if order is None else one[order.permutation(self.count)] for _ in agents], axis=1)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes a folder as ``DiffusionPlanner.save_pretrained`` does."""
        self.planner.provenance |= {FUTURES: "agents" if self.per_agent else "joint"}
        self.planner.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **components: Any) -> Self:
        """Reads what ``save_pretrained`` or ``train_futures`` wrote; ``components`` as of a ``DiffusionPlanner``.

        Raises:
            ValueError: no planner is there, it is damaged, or none that draws futures.
        """
        whole = find_planner(folder)
        components, settings = load_components(whole, components)
        planner = DiffusionPlanner(**components, **settings)
        planner.provenance = load_provenance(whole, futures=True)
        return cls(planner, planner.provenance[FUTURES] == "agents")
