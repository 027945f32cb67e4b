"""Diffusion models that plan for several robots at once.

Everything a user needs hangs here and loads on first use: ``import diffplan`` alone loads neither torch nor diffusers.

Example:
    >>> import diffplan as dp
    >>> role = dp.Role(observation_size=4, action_low=(-1.0, -1.0), action_high=(1.0, 1.0))
    >>> dp.JointSpec({"left": "arm", "right": "arm"}, {"arm": role})
    JointSpec(2 agents: left, right; O=4 A=2 D=6; dt=1 s)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffplan.augmentation import Augmentation
    from diffplan.datasets import (
        Normalizer,
        StyleTable,
        TrajectoryDataset,
        TrajectoryStore,
        collect_episodes,
        export_minari,
        export_npz,
        import_episodes,
        load_dataset,
        merge_stores,
    )
    from diffplan.envs import OneHotActions, make
    from diffplan.evaluation import evaluate
    from diffplan.finetuning import finetune
    from diffplan.futures_training import train_futures
    from diffplan.models import JointDenoiser, NoisePolicy, PartnerEncoder, ValueFunction
    from diffplan.partners import TeamOfPolicies, WithPartners, watch_partner
    from diffplan.planners import (
        ConstraintGuide,
        DecentralizedTeam,
        DiffusionPlanner,
        Futures,
        GoalGuide,
        Guide,
        Link,
        Manners,
        PartnerGuide,
        PartnerParticles,
        Question,
        RecedingHorizonPolicy,
        SafetyFilter,
        TeamMember,
        ValueGuide,
        make_scheduler,
        projected,
        representatives,
    )
    from diffplan.plotting import (
        animate_denoising,
        plot_belief,
        plot_calibration,
        plot_comparison,
        plot_dataset,
        plot_denoising,
        plot_filmstrip,
        plot_finetuning,
        plot_learning_curve,
        plot_plan,
        plot_what_if,
    )
    from diffplan.processes.team import run_team
    from diffplan.questions import QuestionMix
    from diffplan.rollout import record_rollout, save_video
    from diffplan.spec import JointSpec, Role
    from diffplan.training import train
    from diffplan.trajectory import Belief, Cells, Plan, Trajectory
    from diffplan.value_calibration import calibration
    from diffplan.value_training import train_value

__version__ = "0.1.0"

__all__ = [
    "Augmentation",
    "Belief",
    "Cells",
    "ConstraintGuide",
    "DecentralizedTeam",
    "DiffusionPlanner",
    "Futures",
    "GoalGuide",
    "Guide",
    "JointDenoiser",
    "JointSpec",
    "Link",
    "Manners",
    "NoisePolicy",
    "Normalizer",
    "OneHotActions",
    "PartnerEncoder",
    "PartnerGuide",
    "PartnerParticles",
    "Plan",
    "Question",
    "QuestionMix",
    "RecedingHorizonPolicy",
    "Role",
    "SafetyFilter",
    "StyleTable",
    "TeamMember",
    "TeamOfPolicies",
    "Trajectory",
    "TrajectoryDataset",
    "TrajectoryStore",
    "ValueFunction",
    "ValueGuide",
    "WithPartners",
    "__version__",
    "animate_denoising",
    "calibration",
    "collect_episodes",
    "evaluate",
    "export_minari",
    "export_npz",
    "finetune",
    "import_episodes",
    "load_dataset",
    "make",
    "make_scheduler",
    "merge_stores",
    "plot_belief",
    "plot_calibration",
    "plot_comparison",
    "plot_dataset",
    "plot_denoising",
    "plot_filmstrip",
    "plot_finetuning",
    "plot_learning_curve",
    "plot_plan",
    "plot_what_if",
    "projected",
    "record_rollout",
    "representatives",
    "run_team",
    "save_video",
    "train",
    "train_futures",
    "train_value",
    "watch_partner",
]

_HOMES = {
    "Augmentation": "augmentation",
    "Belief": "trajectory",
    "Cells": "trajectory",
    "ConstraintGuide": "planners",
    "DecentralizedTeam": "planners",
    "DiffusionPlanner": "planners",
    "Futures": "planners",
    "GoalGuide": "planners",
    "Guide": "planners",
    "JointDenoiser": "models",
    "JointSpec": "spec",
    "Link": "planners",
    "Manners": "planners",
    "NoisePolicy": "models",
    "Normalizer": "datasets",
    "OneHotActions": "envs",
    "PartnerEncoder": "models",
    "PartnerGuide": "planners",
    "PartnerParticles": "planners",
    "Plan": "trajectory",
    "Question": "planners",
    "QuestionMix": "questions",
    "RecedingHorizonPolicy": "planners",
    "Role": "spec",
    "SafetyFilter": "planners",
    "StyleTable": "datasets",
    "TeamMember": "planners",
    "Trajectory": "trajectory",
    "TrajectoryDataset": "datasets",
    "TrajectoryStore": "datasets",
    "ValueFunction": "models",
    "ValueGuide": "planners",
    "TeamOfPolicies": "partners",
    "WithPartners": "partners",
    "animate_denoising": "plotting",
    "calibration": "value_calibration",
    "collect_episodes": "datasets",
    "evaluate": "evaluation",
    "export_minari": "datasets",
    "export_npz": "datasets",
    "import_episodes": "datasets",
    "finetune": "finetuning",
    "load_dataset": "datasets",
    "make": "envs",
    "make_scheduler": "planners",
    "merge_stores": "datasets",
    "plot_belief": "plotting",
    "plot_calibration": "plotting",
    "plot_comparison": "plotting",
    "plot_dataset": "plotting",
    "plot_denoising": "plotting",
    "plot_filmstrip": "plotting",
    "plot_finetuning": "plotting",
    "plot_learning_curve": "plotting",
    "plot_plan": "plotting",
    "plot_what_if": "plotting",
    "record_rollout": "rollout",
    "projected": "planners",
    "representatives": "planners",
    "run_team": "processes.team",
    "save_video": "rollout",
    "train": "training",
    "train_futures": "futures_training",
    "train_value": "value_training",
    "watch_partner": "partners",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
