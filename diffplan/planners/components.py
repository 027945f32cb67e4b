"""What a planner is made of, and what its parts must agree on, so that they fit each other and the data."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffplan.datasets.normalizer import Normalizer
from diffplan.models.denoiser import JointDenoiser
from diffplan.models.noise import NoisePolicy
from diffplan.models.partner import PartnerEncoder
from diffplan.models.value import ValueFunction
from diffplan.planners.estimator import check_default_dtype
from diffplan.planners.sampling import Scheduler, check_scheduler
from diffplan.spec import JointSpec

if TYPE_CHECKING:
    from diffplan.datasets.windows import TrajectoryDataset


class Components:
    """What a planner is made of, and of which classes: what type checkers see, and what ``saving.py`` goes by."""

    denoiser: JointDenoiser
    scheduler: Scheduler
    normalizer: Normalizer
    value_function: ValueFunction | None
    partner_encoder: PartnerEncoder | None
    noise_policy: NoisePolicy | None

    @property
    def device(self) -> torch.device:
        """Where the denoiser is, and with it all that is planned; a value function may be elsewhere."""
        return self.denoiser.device


def check_value(value: ValueFunction, spec: JointSpec, whose: str = "the planner") -> None:
    """Raises ``ValueError`` unless the value function was made for such observations, actions and roles."""
    sizes = {"observation_size": spec.observation_size, "action_size": spec.action_size, "num_roles": len(spec.roles)}
    if (got := {name: value.config[name] for name in sizes}) != sizes:
        raise ValueError(
            f"the value function was made for {got}, but {whose} has {sizes}; "
            "make one with ValueFunction.for_dataset(dataset)."
        )


def check_parts(
    denoiser: JointDenoiser,
    scheduler: Scheduler,
    normalizer: Normalizer,
    value_function: ValueFunction | None,
    encoder: PartnerEncoder | None,
    noise_policy: NoisePolicy | None,
    spec: JointSpec,
    horizon: int,
    history: int,
) -> None:
    """Raises ``ValueError`` where the parts of a planner do not fit each other, ``TypeError`` for another network."""
    if not isinstance(denoiser, JointDenoiser):
        kind = type(denoiser).__name__
        raise TypeError(f"the denoiser is a {kind}; derive yours from JointDenoiser, whose settings and methods count.")
    check_default_dtype()
    check_scheduler(scheduler)
    wanted = (len(spec.roles), spec.size)
    if (shape := np.shape(normalizer.config.center)) != wanted:
        raise ValueError(f"the normalizer has [roles, entries] {shape}, the spec {wanted}; use that of the dataset.")
    if value_function is not None:
        check_value(value_function, spec)
    if horizon < 1 or history < 0:
        raise ValueError(f"horizon={horizon}, history={history}; give 1 or more, and 0 or more steps.")
    made_for = denoiser.config
    if made_for.history != history and (made_for.from_present or len(made_for.position)):  # else it asks for no present
        raise ValueError(f"the denoiser was made for history={made_for.history}, not {history}.")
    if made_for.window != history + horizon:
        raise ValueError(f"the denoiser was made for {made_for.window} cells, not {history + horizon}.")
    if (made_for.size, made_for.num_roles) != (spec.size, len(spec.roles)):
        raise ValueError(
            f"the denoiser was made for D={made_for.size} and {made_for.num_roles} roles, "
            f"but the spec has D={spec.size} and {len(spec.roles)}; use the spec of its training."
        )
    if noise_policy is not None:
        expected = {"size": spec.size, "window": history + horizon, "history": history, "num_roles": len(spec.roles)}
        if (got := {name: noise_policy.config[name] for name in expected}) != expected:
            raise ValueError(
                f"the noise policy was made for {got}, the planner has {expected}; make both for one dataset."
            )
    if encoder is not None:
        _check_encoder(encoder, made_for.latent_size, spec, history)


def _check_encoder(encoder: PartnerEncoder, latent_size: int, spec: JointSpec, history: int) -> None:
    if (encoder.config.size, encoder.config.num_roles) != (spec.size, len(spec.roles)):
        raise ValueError(
            f"the partner encoder was made for D={encoder.config.size} and {encoder.config.num_roles} roles, the spec "
            f"has D={spec.size} and {len(spec.roles)}; make both for one dataset."
        )
    if encoder.config.history != history:
        raise ValueError(
            f"the partner encoder reads {encoder.config.history} past cells, the planner has history={history}; "
            "make both for one dataset."
        )
    if encoder.config.latent_size != latent_size:
        raise ValueError(
            f"the partner encoder's latent_size={encoder.config.latent_size}, the denoiser's {latent_size}; "
            "make the planner with for_dataset(dataset, partner_encoder=encoder)."
        )


def make_denoiser(
    dataset: "TrajectoryDataset",
    *,
    seed: int,
    frames: bool,
    patch_size: int | None,
    latent_size: int,
    prediction: str,
    from_present: bool | None,
    width: int,
    depth: int,
    agent_attention: bool,
    return_conditioning: bool,
    pace: bool,
    neighbours: int,
) -> JointDenoiser:
    """An untrained network of a dataset's sizes; arguments are those of ``DiffusionPlanner.for_dataset``."""
    window = dataset.history + dataset.horizon
    from_present = not latent_size if from_present is None else from_present
    changes = common_positions(dataset.spec) if from_present and prediction == "sample" and not frames else ()
    places = frame_options(dataset) if frames else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return JointDenoiser(
            size=dataset.spec.size,
            window=window,
            num_roles=len(dataset.spec.roles),
            patch_size=next(s for s in (8, 4, 2, 1) if window % s == 0) if patch_size is None else patch_size,
            width=width,
            depth=depth,
            agent_attention=agent_attention,
            prediction=prediction,
            return_conditioning=return_conditioning,
            latent_size=latent_size,
            pace=pace,
            neighbours=neighbours,
            history=dataset.history,
            from_present=from_present,
            changes=changes,
            **places,
        ).eval()


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
        raise ValueError(
            f"frames with normalizer={kind!r}; load the dataset with normalizer='motion' (--normalizer motion)."
        )
    return first


def common_positions(spec: JointSpec) -> tuple[int, ...]:
    """The entries of agents' positions, where they are the same for all roles; else none."""
    first, *others = (role.position for role in spec.roles.values())
    return () if any(other != first for other in others) else first
