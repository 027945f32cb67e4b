"""What a planner makes of a question before it samples: what agents are like, and which noise to begin with."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffplan.models.denoiser import JointDenoiser
from diffplan.models.noise import NoisePolicy
from diffplan.models.partner import PartnerEncoder
from diffplan.planners.question import Question
from diffplan.spec import JointSpec
from diffplan.trajectory import Belief

if TYPE_CHECKING:
    from diffplan.datasets.windows import TrajectoryDataset
    from diffplan.planners.planner import DiffusionPlanner


def check_parts(
    denoiser: JointDenoiser,
    encoder: PartnerEncoder | None,
    noise_policy: NoisePolicy | None,
    spec: JointSpec,
    horizon: int,
    history: int,
) -> None:
    """Raises ``ValueError`` where the parts of a planner do not fit each other."""
    if denoiser.config.window != history + horizon:
        raise ValueError(f"the denoiser was made for {denoiser.config.window} cells, not {history + horizon}.")
    if denoiser.config.size != spec.size or denoiser.config.num_roles != len(spec.roles):
        raise ValueError(
            f"the denoiser was made for D={denoiser.config.size} and {denoiser.config.num_roles} roles, "
            f"but the spec has D={spec.size} and {len(spec.roles)}; use the spec of its training."
        )
    if noise_policy is not None:
        expected = {"size": spec.size, "window": history + horizon, "history": history, "num_roles": len(spec.roles)}
        got = {name: noise_policy.config[name] for name in expected}
        if got != expected:
            raise ValueError(
                f"the noise policy was made for {got}, the planner has {expected}; make both for one dataset."
            )
    if encoder is None:
        return
    if encoder.config.history != history:
        raise ValueError(
            f"the partner encoder reads {encoder.config.history} past cells, the planner has history={history}; "
            "make both for one dataset."
        )
    if encoder.config.latent_size != denoiser.config.latent_size:
        raise ValueError(
            f"the partner encoder's latent_size={encoder.config.latent_size}, the denoiser's "
            f"{denoiser.config.latent_size}; make the planner with for_dataset(dataset, partner_encoder=encoder)."
        )


def frame_options(dataset: "TrajectoryDataset") -> dict[str, Any]:
    """Arguments of a ``JointDenoiser`` that sees agents in their own frames: where cells hold positions and the like.

    Raises:
        ValueError: the roles do not agree on that, positions are not of two entries, or a normaliser other than
            ``"motion"``, under which the map's directions differ in scale.
    """
    names = ("position", "velocity", "goal")
    first, *others = [{name: list(getattr(role, name)) for name in names} for role in dataset.spec.roles.values()]
    if any(other != first for other in others) or len(first["position"]) != 2 or len(first["velocity"]) not in (0, 2):
        raise ValueError(
            f"frames need roles with position (and velocity, goal) in the same two entries; got {[first, *others]}."
        )
    kind = dataset.normalizer and dataset.normalizer.config.kind
    if kind != "motion":
        raise ValueError(f"frames with normalizer={kind!r}; load the dataset with normalizer='motion'.")
    return {**first, "history": dataset.history}


def infer(
    planner: "DiffusionPlanner",
    questions: Sequence[Question],
    values: Float[Tensor, "B N W D"],
    known: Bool[Tensor, "B N W D"],
    present: Bool[Tensor, "B N"],
) -> tuple[Float[Tensor, "B N Z"] | None, list[Belief | None]]:
    """The latents that the denoiser is told, and the same as beliefs; None where it takes none, or none are known.

    The encoder attends to whoever is present, seen or not, as in training.

    Raises:
        ValueError: told latents that the denoiser does not take, or of another shape.
    """
    size, encoder = planner.denoiser.config.latent_size, planner.partner_encoder
    shape = (planner.spec.num_agents, size)
    for question in questions:
        if question.latents is not None and question.latents.shape != shape:
            raise ValueError(f"latents have shape {question.latents.shape}, expected (agents, latent_size) = {shape}.")
    told = [np.full(shape, np.nan, np.float32) if q.latents is None else q.latents for q in questions]
    if not size:
        return None, [None] * len(questions)
    latents = torch.from_numpy(np.stack(told)).to(values)
    if encoder is None:
        return latents, [Belief(one, (), np.zeros((len(one), 0), np.float32)) for one in told]
    past = slice(planner.history + 1)
    roles = torch.from_numpy(planner.spec.role_index).to(values.device)
    code = encoder(values[:, :, past], known[:, :, past], roles, present)
    unasked = torch.tensor([question.latents is None for question in questions], device=values.device)
    latents = torch.where(unasked[:, None, None], code.mean, latents)
    families, chances = tuple(encoder.config.families), code.logits.softmax(-1).cpu().numpy()
    beliefs = [Belief(one, families, row) for one, row in zip(latents.cpu().numpy(), chances, strict=True)]
    return latents, list(beliefs)


def steered(
    planner: "DiffusionPlanner",
    noise: Float[Tensor, "B S N W D"],
    values: Float[Tensor, "B N W D"],
    known: Bool[Tensor, "B N W D"],
    present: Bool[Tensor, "B N"],
) -> Float[Tensor, "B S N W D"]:
    """The noise that plans begin with: of the planner's noise policy, where it has one; also that of warm starts.

    The noise and a plan are the two ends of a path, and a warm start enters it in between: with the noise that a plan
    came of, it goes on where that plan's own sampling was.
    """
    if planner.noise_policy is None:
        return noise
    roles = torch.from_numpy(planner.spec.role_index).to(noise.device)
    return planner.noise_policy.steer(noise, values, known, roles, present)
