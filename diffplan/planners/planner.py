"""The planner: one call answers every question that a mask of known cells can ask (see the table in docs/design.md)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from jaxtyping import Bool, Float
from torch import Tensor

from diffplan.datasets.normalizer import Normalizer
from diffplan.files import read_json, write_json
from diffplan.models.denoiser import JointDenoiser
from diffplan.planners.sampling import Scheduler, denoise_grid, make_scheduler, noise_levels
from diffplan.planners.saving import INDEX, find_planner, load_components, whole_folder
from diffplan.spec import Actions, JointSpec, Observations
from diffplan.trajectory import Cells, Plan

if TYPE_CHECKING:
    from diffplan.datasets.windows import TrajectoryDataset


@dataclass(frozen=True)
class Question:
    """What one plan starts from.

    Args:
        observations: the present. An agent without a key is absent; a NaN entry is unknown (partial observability).
        past: (observations, actions) of earlier steps, the latest last.
        given: further known cells: a goal, a partner's announced plan, actions to forecast under.
        warm_start: an earlier plan, shifted so that its step 0 is now.
        seed: of this plan's noise.
    """

    observations: Mapping[str, Any]
    past: Sequence[tuple[Observations, Actions]] = ()
    given: Cells | None = None
    warm_start: Plan | None = None
    seed: int = 0


class DiffusionPlanner(DiffusionPipeline):
    """Samples coordinated joint plans from a trained denoiser.

    Args:
        denoiser: the trained network.
        scheduler: which noise levels to visit and how; replace it at any time (``planner.scheduler =
            make_scheduler("dpm")``).
        normalizer: physical units to the network's units and back.
        spec: who the agents are (a ``JointSpec`` or its ``to_dict()``).
        horizon: H, planned steps from the present on.
        history: cells before the present that the network sees.

    The attribute ``precision`` says how the network computes: ``"float32"``, ``"bfloat16"``, or ``"auto"`` (the
    default): bfloat16 for 8 or more samples at once on a CPU that computes in it, float32 otherwise.

    Raises:
        ValueError: the parts do not fit each other.
    """

    model_cpu_offload_seq = "denoiser"

    def __init__(
        self,
        denoiser: JointDenoiser,
        scheduler: Scheduler,
        normalizer: Normalizer,
        spec: JointSpec | dict[str, Any] | None = None,
        horizon: int = 32,
        history: int = 0,
    ):
        super().__init__()
        if spec is None:
            raise ValueError("spec is missing; pass the JointSpec of the agents, e.g. dataset.spec.")
        self.spec = spec if isinstance(spec, JointSpec) else JointSpec.from_dict(spec)
        if denoiser.config.window != history + horizon:
            raise ValueError(f"the denoiser was made for {denoiser.config.window} cells, not {history + horizon}.")
        if denoiser.config.size != self.spec.size or denoiser.config.num_roles != len(self.spec.roles):
            raise ValueError(
                f"the denoiser was made for D={denoiser.config.size} and {denoiser.config.num_roles} roles, "
                f"but the spec has D={self.spec.size} and {len(self.spec.roles)}; use the spec of its training."
            )
        self.register_modules(denoiser=denoiser, scheduler=scheduler, normalizer=normalizer)
        self.register_to_config(spec=self.spec.to_dict(), horizon=horizon, history=history)
        self.horizon, self.history, self.precision = horizon, history, "auto"

    @classmethod
    def for_dataset(
        cls,
        dataset: "TrajectoryDataset",
        *,
        width: int = 128,
        depth: int = 3,
        patch_size: int | None = None,
        agent_attention: bool = True,
        prediction: str = "sample",
        seed: int = 0,
    ) -> Self:
        """An untrained planner of the right sizes for a dataset, with its normaliser.

        ``patch_size`` is the largest of 8, 4, 2 and 1 that divides the window, if None. Raises as ``JointDenoiser``,
        and ``ValueError`` when the dataset has no normaliser.
        """
        if dataset.normalizer is None:
            raise ValueError("the dataset has no normalizer; load it with normalizer='gaussian'.")
        window = dataset.history + dataset.horizon
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            denoiser = JointDenoiser(
                size=dataset.spec.size,
                window=window,
                num_roles=len(dataset.spec.roles),
                patch_size=next(s for s in (8, 4, 2, 1) if window % s == 0) if patch_size is None else patch_size,
                width=width,
                depth=depth,
                agent_attention=agent_attention,
                prediction=prediction,
            ).eval()
        return cls(denoiser, make_scheduler("flow"), dataset.normalizer, dataset.spec, dataset.horizon, dataset.history)

    def save_pretrained(self, save_directory: str | Path, **unused: Any) -> None:
        """Writes the planner to a folder of its own, whole or not at all: safetensors, JSON, a manifest of SHA-256.

        Raises:
            ValueError: the folder holds something other than a planner, which would be lost.
            OSError: the folder cannot be written; a planner that was there before is unchanged.
        """
        if unused:
            raise TypeError(f"save_pretrained takes only a folder, got also {sorted(unused)}.")
        with whole_folder(Path(save_directory)) as folder:
            super().save_pretrained(folder)
            index = read_json(folder / INDEX)  # diffusers sorts keys, but the order of agents and roles has a meaning
            write_json(folder / INDEX, {**index, "spec": self.spec.to_dict()})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **unused: Any) -> Self:
        """Reads a planner that ``save_pretrained`` or ``diffplan train`` wrote; needs neither data nor network.

        Raises:
            ValueError: the folder holds no planner, or a file in it is damaged or foreign; the message names it.
        """
        if unused:
            raise TypeError(f"from_pretrained takes only a folder, got also {sorted(unused)}.")
        components, settings = load_components(find_planner(pretrained_model_name_or_path))
        return cls(**components, **settings)

    def for_agents(self, spec: JointSpec) -> "DiffusionPlanner":
        """The same planner for another team of the same roles: more robots, fewer, other names. Weights are shared.

        Raises:
            ValueError: ``spec`` has a role that the planner was not trained for.
        """
        self.spec.check_same_roles(spec, "the planner", "the environment")
        roles = {
            name: spec.roles[name] if spec.roles.get(name) == role else role for name, role in self.spec.roles.items()
        }
        adapted = JointSpec(spec.agents, roles, self.spec.dt, spec.env_id, spec.env_options)
        other = DiffusionPlanner(self.denoiser, self.scheduler, self.normalizer, adapted, self.horizon, self.history)
        other.precision = self.precision
        return other

    def __call__(
        self,
        observations: Mapping[str, Any],
        *,
        past: Sequence[tuple[Observations, Actions]] = (),
        given: Cells | None = None,
        num_samples: int = 1,
        num_inference_steps: int = 5,
        seed: int = 0,
        warm_start: Plan | None = None,
        warm_start_level: float = 0.7,
        decode_actions: bool = False,
        return_chain: bool = False,
    ) -> Plan:
        """Samples plans from the present observations on.

        Args:
            observations: {agent: observation}, in physical units; see ``Question`` for absent and unknown.
            past: earlier (observations, actions), the latest last; only the last ``history`` are used.
            given: further known cells (NaN where unknown), e.g. ``other_plan.cells("robot_0")``.
            num_samples: S, how many candidates.
            num_inference_steps: denoising steps.
            seed: the same seed gives the same plan.
            warm_start: start from this plan, noised up to ``warm_start_level``, instead of from pure noise.
            decode_actions: read the actions off the planned observations (inverse dynamics: one more call of the
                network) instead of keeping those that were sampled along.
            return_chain: keep the noise and the sample after every step in ``Plan.chain``.

        Raises:
            ValueError: agents, widths or grids that do not fit the spec; nothing is sampled then.
        """
        question = Question(observations, past, given, warm_start, seed)
        return self.answer(
            [question], num_samples, num_inference_steps, warm_start_level, decode_actions, return_chain
        )[0]

    @torch.inference_mode()
    def answer(
        self,
        questions: Sequence[Question],
        num_samples: int = 1,
        num_inference_steps: int = 5,
        warm_start_level: float = 0.7,
        decode_actions: bool = False,
        return_chain: bool = False,
    ) -> list[Plan]:
        """Samples plans for many questions in one batch, all with a warm start or none; see ``__call__``."""
        if not questions:
            return []
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples}; ask for at least one.")
        values, exists = (torch.from_numpy(np.stack(parts)) for parts in zip(*map(self._grid, questions), strict=True))
        values, exists = values.to(self.device), exists.to(self.device)
        levels = noise_levels(self.scheduler, num_inference_steps)
        warm = questions[0].warm_start is not None
        if any((question.warm_start is not None) != warm for question in questions):
            raise ValueError("some questions have a warm_start and some do not; ask them in two calls.")
        if warm:
            levels = _from_level(levels, warm_start_level)
        noise = torch.stack([self._noise(question.seed, num_samples) for question in questions])
        noisy = noise * levels[0]
        if warm:
            noisy = noisy + (1 - levels[0]) * torch.stack([self._warm(q, num_samples) for q in questions])
        known = ~values.isnan()
        sample = torch.where(known[:, None], values[:, None], noisy) * exists[:, None]
        chain = self._sample(sample.flatten(0, 1), known, exists, levels, num_samples)
        if decode_actions:
            observed = torch.arange(self.spec.size, device=self.device) < self.spec.observation_size
            sample = torch.where(known[:, None] | observed, chain[-1].reshape(noise.shape), noise) * exists[:, None]
            chain[-1] = self._sample(sample.flatten(0, 1), known | observed, exists, [1.0, 0.0], num_samples)[-1]
        shape = (len(questions), num_samples, *chain[-1].shape[1:])
        clean = self._physical(chain[-1].reshape(shape))
        steps = [self._physical(step.reshape(shape)) for step in chain] if return_chain else []
        return [
            self._plan(clean[i], exists[i].cpu().numpy(), np.stack([step[i] for step in steps]) if steps else None)
            for i in range(len(questions))
        ]

    def _grid(self, question: Question) -> tuple[Float[np.ndarray, "N W D"], Bool[np.ndarray, "N W D"]]:
        """Normalised known values (NaN where unknown, 0 where nothing exists), and which entries exist."""
        spec, O, W = self.spec, self.spec.observation_size, self.history + self.horizon
        present, agent_mask = spec.stack_observations(question.observations)
        if not agent_mask.any():
            raise ValueError(f"no agent is present; observations must name some of {list(spec.names)}.")
        values = np.full((spec.num_agents, W, spec.size), np.nan, np.float32)
        exists = np.repeat((spec.feature_mask & agent_mask[:, None])[:, None], W, axis=1)
        exists[:, : self.history] = False
        values[:, self.history, :O] = present
        static = spec.static_mask[:, None, :O]
        values[..., :O] = np.where(static, present[:, None], values[..., :O])
        past = question.past[-self.history :] if self.history else ()
        for step, (observations, actions) in enumerate(past, start=self.history - len(past)):
            values[:, step, :O], was_there = spec.stack_observations(observations)
            values[:, step, O:], _ = spec.stack_actions(actions)
            exists[:, step] = spec.feature_mask & was_there[:, None]
        if question.given is not None:
            given = np.concatenate((question.given.observations, question.given.actions), axis=-1)
            if given.shape != (spec.num_agents, self.horizon, spec.size):
                raise ValueError(
                    f"given cells have shape {given.shape}, expected {(spec.num_agents, self.horizon, spec.size)}."
                )
            absent = [name for i, name in enumerate(spec.names) if not agent_mask[i] and np.isfinite(given[i]).any()]
            if absent:
                raise ValueError(
                    f"cells of absent agents {absent} are given; add them to observations (NaN if unseen)."
                )
            future = values[:, self.history :]
            values[:, self.history :] = np.where(np.isnan(given), future, given)
        values = self.normalizer.normalize(values, spec.role_index)
        return np.where(exists, values, 0).astype(np.float32), exists

    def _noise(self, seed: int, num_samples: int) -> Float[Tensor, "S N W D"]:
        generator = torch.Generator().manual_seed(seed)
        shape = (num_samples, self.spec.num_agents, self.history + self.horizon, self.spec.size)
        return torch.randn(shape, generator=generator).to(self.device)

    def _warm(self, question: Question, num_samples: int) -> Float[Tensor, "S N W D"]:
        """The earlier plan in the network's units; the history is known anyway, so it is left 0."""
        plan = question.warm_start
        assert plan is not None
        cells = np.concatenate((plan.observations, plan.actions), axis=-1)
        if cells.shape[1:] != (self.spec.num_agents, self.horizon, self.spec.size):
            raise ValueError(f"warm_start is {plan}, expected N={self.spec.num_agents}, H={self.horizon}.")
        index = np.resize(np.arange(len(cells)), num_samples)
        normalized = self.normalizer.normalize(cells[index], self.spec.role_index)
        return torch.from_numpy(np.pad(normalized, ((0, 0), (0, 0), (self.history, 0), (0, 0)))).to(self.device)

    def _sample(
        self,
        sample: Float[Tensor, "BS N W D"],
        known: Bool[Tensor, "B N W D"],
        exists: Bool[Tensor, "B N W D"],
        levels: list[float],
        num_samples: int,
    ) -> list[Tensor]:
        """Runs the network down the levels; what is the same for the whole batch is computed once."""
        if (known == known[:1]).all() and (exists == exists[:1]).all():
            known, exists = known[:1], exists[:1]
        else:
            known, exists = known.repeat_interleave(num_samples, 0), exists.repeat_interleave(num_samples, 0)
        mask = None if exists.any(-1).all() else exists.any(-1)
        given = known & exists
        unknown_cell = (~known & exists).any(-1).to(sample.dtype)
        roles = torch.from_numpy(self.spec.role_index).to(sample.device)
        worthwhile = self.precision != "auto" or (sample.device.type == "cpu" and len(sample) >= 8)
        half = worthwhile and uses_bfloat16(self.precision)

        def denoise(sample: Tensor, level: float) -> Tensor:
            with torch.autocast(sample.device.type, torch.bfloat16, enabled=half):
                clean = self.denoiser(sample, level * unknown_cell, given, roles, mask)
            return clean.to(sample.dtype) * exists

        second_order = isinstance(self.scheduler, DPMSolverMultistepScheduler)
        return denoise_grid(denoise, sample, known, levels, second_order)

    def _physical(self, cells: Tensor) -> np.ndarray:
        return self.normalizer.unnormalize(cells.cpu().numpy(), self.spec.role_index)

    def _plan(self, cells: np.ndarray, exists: np.ndarray, chain: np.ndarray | None) -> Plan:
        future = cells[:, :, self.history :] * exists[:, self.history :]
        chain = None if chain is None else chain[..., self.history :, :] * exists[:, self.history :]
        O = self.spec.observation_size
        return Plan(
            self.spec, future[..., :O], future[..., O:], np.asarray(exists[:, self.history].any(-1)), chain=chain
        )


def _from_level(levels: list[float], start: float) -> list[float]:
    """The part of a schedule below ``start``, beginning there."""
    if not 0 < start <= 1:
        raise ValueError(f"warm_start_level={start}; choose a noise level in (0, 1].")
    return [start, *(level for level in levels if level < start - 1e-6)]


def uses_bfloat16(precision: str) -> bool:
    """Whether to compute in bfloat16: as told, or for ``"auto"`` where the device can (4 times as fast as float32)."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision={precision!r}; choose 'auto', 'float32' or 'bfloat16'.")
    can = torch.cuda.is_available() or bool(torch.cpu._is_avx512_bf16_supported())
    return precision == "bfloat16" or (precision == "auto" and can)
