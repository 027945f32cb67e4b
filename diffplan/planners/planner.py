"""The planner: one call answers every question that a mask of known cells can ask (see the table in docs/design.md)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
from diffplan.models.noise import NoisePolicy
from diffplan.models.partner import PartnerEncoder
from diffplan.models.value import ValueFunction
from diffplan.planner_folder import INDEX, find_planner
from diffplan.planners.action_spread import checked_spread, openness
from diffplan.planners.components import Components, check_parts, make_denoiser
from diffplan.planners.deadline import Deadline, Pace
from diffplan.planners.estimator import make_estimator, uses_bfloat16
from diffplan.planners.finishing import HOLDING, finished
from diffplan.planners.grid import Grid, plans_from_chain
from diffplan.planners.guidance import Guidance, check_levels
from diffplan.planners.guides import Guide
from diffplan.planners.inference import first_sample, infer
from diffplan.planners.question import Question, Sampling
from diffplan.planners.ranking import DRAWS, realism
from diffplan.planners.sampling import (
    Scheduler,
    check_scheduler,
    denoise_grid,
    make_scheduler,
    noise_levels,
    steer_particles,
)
from diffplan.planners.saving import (
    COMPONENTS,
    OPTIONAL,
    PROVENANCE,
    SETTINGS,
    load_components,
    load_provenance,
    whole_folder,
)
from diffplan.spec import Actions, JointSpec, Observations
from diffplan.trajectory import Cells, Plan

if TYPE_CHECKING:
    from diffplan.datasets.windows import TrajectoryDataset

PLAIN = Sampling()


class DiffusionPlanner(Components, DiffusionPipeline):
    """Samples coordinated joint plans from a trained denoiser.

    Args:
        denoiser: the trained network.
        scheduler: which noise levels to visit and how; replace it at any time (``planner.scheduler =
            make_scheduler("dpm")``).
        normalizer: physical units to the network's units and back.
        spec: who the agents are (a ``JointSpec`` or its ``to_dict()``).
        horizon: H, planned steps from the present on.
        history: cells before the present that the network sees.
        value_function: what a team may expect, from ``train_value``; may be set later.
        partner_encoder: infers from their past what agents are like, for a denoiser with ``latent_size``.
        noise_policy: what the first noise of plans shall be; ``finetune(method="noise")`` trains it.
        action_spread: how far the data leave actions open, see ``action_spread.py``; ``train`` measures it. None, as
            after ``finetune``: critics count wholly.

    The attribute ``precision`` says how the network computes: ``"float32"``, ``"bfloat16"``, or ``"auto"`` (the
    default): bfloat16 for 8 or more samples at once on a CPU that computes in it, float32 otherwise. ``provenance``
    says where the weights come from, in plain values that are saved with them; ``finetune`` writes it.

    Raises:
        ValueError: the parts do not fit each other.
    """

    model_cpu_offload_seq = "denoiser"
    _optional_components = list(OPTIONAL)

    def __init__(
        self,
        denoiser: JointDenoiser,
        scheduler: Scheduler,
        normalizer: Normalizer,
        spec: JointSpec | dict[str, Any] | None = None,
        horizon: int = 32,
        history: int = 0,
        value_function: ValueFunction | None = None,
        partner_encoder: PartnerEncoder | None = None,
        noise_policy: NoisePolicy | None = None,
        action_spread: float | None = None,
    ):
        super().__init__()
        if spec is None:
            raise ValueError("spec is missing; pass the JointSpec of the agents, e.g. dataset.spec.")
        self.spec = spec if isinstance(spec, JointSpec) else JointSpec.from_dict(spec)
        parts = (denoiser, scheduler, normalizer, value_function, partner_encoder, noise_policy)
        check_parts(*parts, self.spec, horizon, history)
        self.register_modules(
            denoiser=denoiser,
            scheduler=scheduler,
            normalizer=normalizer,
            value_function=value_function,
            partner_encoder=partner_encoder,
            noise_policy=noise_policy,
        )
        settings = {"horizon": int(horizon), "history": int(history), "action_spread": checked_spread(action_spread)}
        self.register_to_config(spec=self.spec.to_dict(), **settings)
        self.horizon, self.history, self.precision = int(horizon), int(history), "auto"
        self.provenance: dict[str, Any] = {}
        self._pace: Pace | None = None  # of the last plan
        self._tried: Sequence[Guide] = ()  # the last plans' guides

    @classmethod
    def for_dataset(
        cls,
        dataset: "TrajectoryDataset",
        *,
        width: int = 96,
        depth: int = 3,
        patch_size: int | None = None,
        agent_attention: bool = True,
        prediction: str = "sample",
        return_conditioning: bool = False,
        partner_encoder: PartnerEncoder | None = None,
        latent_size: int = 0,
        frames: bool = False,
        pace: bool = False,
        neighbours: int = 0,
        from_present: bool | None = None,
        seed: int = 0,
    ) -> Self:
        """An untrained planner of the right sizes for a dataset, with its normaliser.

        With ``frames`` (``models/frames.py``) the network sees positions in the agents' own frames, and how the
        ``neighbours`` nearest agents (0: all) stand to each; with ``pace`` frames are measured by their agents' own.
        The dataset's normaliser is ``"motion"`` then.

        ``from_present``, as of ``JointDenoiser``: None where the network takes no latents; positions are ``changes``.
        ``patch_size`` is the largest of 8, 4, 2 and 1 that divides the window, if None; ``latent_size`` is the partner
        encoder's, where there is one. Raises as ``JointDenoiser``, and ``ValueError`` where there is no normaliser.
        """
        if (normalizer := getattr(dataset, "normalizer", None)) is None:
            raise ValueError("the dataset has no normalizer; load it with load_dataset(..., normalizer='gaussian').")
        denoiser = make_denoiser(
            dataset,
            seed=seed,
            frames=frames,
            patch_size=patch_size,
            latent_size=latent_size if partner_encoder is None else partner_encoder.config.latent_size,
            prediction=prediction,
            from_present=from_present,
            width=width,
            depth=depth,
            agent_attention=agent_attention,
            return_conditioning=return_conditioning,
            pace=pace,
            neighbours=neighbours,
        )
        layout = (normalizer, dataset.spec, dataset.horizon, dataset.history)
        return cls(denoiser, make_scheduler("flow"), *layout, partner_encoder=partner_encoder)

    def save_pretrained(self, save_directory: str | Path, **unused: Any) -> None:
        """Writes the planner, whole or not at all: safetensors, JSON, a manifest of SHA-256; files beside them stay.

        Raises:
            ValueError: the folder holds something other than a planner, or plans cannot be sampled by the scheduler.
            OSError: the folder cannot be written; a planner that was there before is unchanged.
        """
        check_scheduler(self.scheduler)
        if unused:
            raise TypeError(f"save_pretrained takes only a folder, got also {sorted(unused)}.")
        self.register_modules(**{name: getattr(self, name) for name in OPTIONAL})  # also where they were only assigned
        with whole_folder(Path(save_directory)) as folder:
            super().save_pretrained(folder)
            index = read_json(folder / INDEX)  # diffusers sorts keys, but the order of agents and roles has a meaning
            write_json(folder / INDEX, {**index, "spec": self.spec.to_dict()})
            write_json(folder / PROVENANCE, self.provenance)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **components: Any) -> Self:
        """Reads a planner that ``save_pretrained`` or ``diffplan train`` wrote; needs neither data nor network.

        Args:
            pretrained_model_name_or_path: its folder, or that of its run.
            components: parts to take in place of those that were saved. Of a class of your own they are needed, as no
                file makes code be imported: ``denoiser=Mine.from_pretrained("runs/mine/planner/denoiser")``.

        Raises:
            ValueError: the folder holds no planner, or a file in it is damaged or foreign; the message names it.
            TypeError: a component that planners do not have.
        """
        if unknown := sorted(components.keys() - COMPONENTS.keys()):
            raise TypeError(f"from_pretrained takes a folder and {sorted(COMPONENTS)}, got also {unknown}.")
        folder = find_planner(pretrained_model_name_or_path)
        components, settings = load_components(folder, components)
        planner = cls(**components, **settings)
        planner.provenance = load_provenance(folder)
        return planner

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_tried": ()}  # guides may hold functions, which do not go to other processes

    def to(self, *where: Any, **options: Any) -> Self:
        """Moves the planner to a device. Raises ``ValueError`` for a dtype: it computes as ``precision`` says."""
        if any(isinstance(one, torch.dtype) and one != torch.float32 for one in (*where, *options.values())):
            raise ValueError("weights are float32; to compute in bfloat16, set planner.precision = 'bfloat16'.")
        super().to(*where, **options)
        return self

    def for_agents(self, spec: JointSpec) -> Self:
        """The same planner for another team of the same roles: more robots, fewer, other names. Weights are shared.

        Raises:
            ValueError: ``spec`` has a role that the planner was not trained for.
        """
        self.spec.check_same_roles(spec, "the planner", "the environment")
        settings = {name: self.config[name] for name in SETTINGS} | {"spec": self.spec.for_agents(spec)}
        other = type(self)(**self.components, **settings)
        other.precision, other.provenance = self.precision, self.provenance
        return other

    def __call__(
        self,
        observations: Mapping[str, Any],
        *,
        past: Sequence[tuple[Observations, Actions]] = (),
        given: Cells | None = None,
        warm_start: Plan | None = None,
        seed: int = 0,
        latents: Float[np.ndarray, "N Z"] | None = None,
        num_samples: int = 1,
        num_inference_steps: int = 5,
        warm_start_level: float = 0.7,
        decode_actions: bool = False,
        return_chain: bool = False,
        guides: Sequence[Guide] = (),
        resample: bool = False,
        target_return: float | None = None,
        guidance_scale: float = 1.0,
        realism: float = 0.0,
        deadline_ms: float | None = None,
    ) -> Plan:
        """Samples plans from the present observations on.

        Args:
            observations: {agent: observation}, in physical units; see ``Question`` for absent and unknown.
            past: earlier (observations, actions), the latest last; only the last ``history`` are used.
            given: further known cells (NaN where unknown), e.g. ``other_plan.cells("robot_0")``.
            warm_start: start from this plan, noised up to ``warm_start_level``, instead of from pure noise.
            seed: the same seed gives the same plan (in bfloat16 up to rounding, which depends on the batch).
            latents: what is known of each agent, see ``Question``.
            num_samples: S, how many candidates.
            num_inference_steps: denoising steps; from a warm start as many, closer; constraints are kept best with 5.
            warm_start_level: see ``warm_start``.
            decode_actions: read the actions off the planned observations (inverse dynamics: one more call of the
                network) instead of keeping those that were sampled along.
            return_chain: keep the noise and the sample after every step in ``Plan.chain``.
            guides: what plans should be like; they move the plans while these are denoised, and rank them: their sum
                is ``Plan.values``, each one's part is in ``Plan.terms``.
            resample: treat the candidates as particles and resample them (``steer_particles``), so that they follow
                prior x weight also where a guide's gradient alone would not take them; needs ``guides``.
            target_return: plan as in episodes whose return has this rank among the data's, 0 (worst) to 1 (best);
                the network must have been trained with ``return_conditioning``.
            guidance_scale: how far to go from the unconditional estimate to the one for ``target_return`` (1: all the
                way) and beyond (classifier-free guidance, arXiv 2207.12598, eq. 6).
            realism: weight in the ranking of how likely a plan looks to the unguided network, from the present alone.
            deadline_ms: be done by then: with fewer candidates, and with fewer steps, where the time is short. The
                plan says how many it used.

        Raises:
            ValueError: agents, widths, grids or guides that do not fit the spec, or settings that make no sense;
                nothing is sampled then.
            TypeError: guides that are none.
        """
        sampling = Sampling(
            num_samples=num_samples,
            num_inference_steps=num_inference_steps,
            warm_start_level=warm_start_level,
            decode_actions=decode_actions,
            return_chain=return_chain,
            guides=guides,
            resample=resample,
            target_return=target_return,
            guidance_scale=guidance_scale,
            realism=realism,
            deadline_ms=deadline_ms,
        )
        return self.answer([Question(observations, past, given, warm_start, seed, latents)], sampling)[0]

    @torch.inference_mode(False)
    @torch.no_grad()
    def answer(self, questions: Sequence[Question], sampling: Sampling = PLAIN) -> list[Plan]:
        """Samples plans for many questions in one batch, all with a warm start or none; see ``__call__``."""
        if not questions:
            return []
        calls_after = DRAWS * bool(sampling.realism) + sampling.decode_actions + HOLDING * sampling.moves
        deadline, grid = Deadline(sampling.deadline_ms, calls_after, self._pace), Grid.of(self, questions)
        latents, beliefs = infer(self, questions, grid.values, grid.given, grid.present)
        levels = noise_levels(self.scheduler, sampling.num_inference_steps, sampling.first_level(questions))
        number = deadline.affordable(sampling.num_samples, len(levels) - 1, len(questions))
        guidance = self._guidance(sampling, grid, levels)
        seeds = [question.seed for question in questions]
        noise = torch.stack([self._noise(seed, number) for seed in seeds])
        start = first_sample(self, questions, grid, noise, levels[0])
        chain = self._walk(start, grid, levels, sampling, latents, guidance, deadline, seeds)
        plain = dataclasses.replace(sampling, guides=(), resample=False)
        chain[-1] = finished(
            chain[-1],
            ended=levels[len(chain) - 2],
            noise=noise,
            grid=grid,
            observation_size=self.spec.observation_size,
            sampling=sampling,
            walk=lambda noisy, grid, down: self._walk(noisy, grid, down, plain, latents)[-1],
        )
        terms = guidance.terms(chain[-1])
        shown = [step.reshape(noise.shape) for step in (chain if sampling.return_chain else chain[-1:])]
        plans = plans_from_chain(self, shown, grid, terms, beliefs, len(chain) - 1)
        if sampling.realism:
            plans = [plan.with_term("realism", sampling.realism * realism(self, plan)) for plan in plans]
        self._pace = deadline.pace(number * len(questions))
        return plans

    def _guidance(self, sampling: Sampling, grid: Grid, levels: list[float]) -> Guidance:
        """The guides, checked before anything is sampled."""
        opened = openness(self.config["action_spread"])
        guidance = Guidance(sampling.guides, self.spec, self.normalizer, grid.present, self.history, opened)
        guidance.check(self.horizon, self._tried)
        self._tried = tuple(sampling.guides)
        check_levels(sampling.guides, levels[:-1])
        return guidance

    def _noise(self, seed: int, num_samples: int) -> Float[Tensor, "S N W D"]:
        shape = (num_samples, self.spec.num_agents, self.history + self.horizon, self.spec.size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))).to(self.device)

    def _walk(
        self,
        sample: Float[Tensor, "BS N W D"],
        grid: Grid,
        levels: list[float],
        sampling: Sampling,
        latents: Float[Tensor, "B N Z"] | None = None,
        guidance: Guidance | None = None,
        deadline: Deadline | None = None,
        seeds: Sequence[int] = (),
    ) -> list[Float[Tensor, "BS N W D"]]:
        """Runs the network down the levels; what is the same for the whole batch is computed once."""
        known, exists, ceiling = grid.for_candidates(len(sample))
        heard = ceiling < 1
        waiting = ceiling if heard.any() else None
        if sampling.resample and waiting is not None:
            raise ValueError("resample=True takes no given cells with a noise level; leave it out, or give them whole.")
        if latents is not None:
            latents = latents.repeat_interleave(len(sample) // len(latents), 0)
        estimate = self.estimator(known, exists, len(sample), sampling, waiting, latents)

        def stop() -> bool:
            if deadline is None:
                return False
            if sample.is_cuda:
                torch.cuda.synchronize(sample.device)
            return deadline.over(len(sample))

        if deadline is not None:
            deadline.start()
        second_order = isinstance(self.scheduler, DPMSolverMultistepScheduler)
        if guidance is None or not guidance.guides:
            with torch.inference_mode():  # a tenth of a plan
                return denoise_grid(estimate, sample, known, levels, second_order, stop, waiting)

        guided = partial(guidance.guided, estimate, known=known, free=~known & exists & ~heard[..., None])
        if sampling.resample:
            generators = [torch.Generator().manual_seed(int(seed) + 1) for seed in seeds]
            return steer_particles(guided, guidance.particle_weight, sample, known, levels, generators, stop)
        return denoise_grid(lambda *at: guided(*at)[1], sample, known, levels, second_order, stop, waiting)

    def estimator(
        self,
        known: Bool[Tensor, "_ N W D"],
        exists: Bool[Tensor, "_ N W D"],
        batch_size: int,
        sampling: Sampling = PLAIN,
        ceiling: Float[Tensor, "_ N W"] | None = None,
        latents: Float[Tensor, "_ N Z"] | None = None,
    ) -> Callable[[Tensor, float], Tensor]:
        """(sample, noise level) -> the network's estimate of the clean sample, without guides."""
        roles = torch.from_numpy(self.spec.role_index).to(known.device)
        worthwhile = self.precision != "auto" or (known.device.type == "cpu" and batch_size >= 8)
        half = worthwhile and uses_bfloat16(self.precision, known.is_cuda)
        settings = (sampling.target_return, sampling.guidance_scale, ceiling, latents)
        return make_estimator(self.denoiser, known, exists, roles, half, *settings)
