"""Sampling plans, guiding them, and acting on them."""

from diffplan.planners.guides import ConstraintGuide, Estimate, GoalGuide, Guide, ValueGuide
from diffplan.planners.planner import DiffusionPlanner
from diffplan.planners.policy import RecedingHorizonPolicy
from diffplan.planners.question import Question
from diffplan.planners.safety import SafetyFilter
from diffplan.planners.sampling import make_scheduler

__all__ = [
    "ConstraintGuide",
    "DiffusionPlanner",
    "Estimate",
    "GoalGuide",
    "Guide",
    "Question",
    "RecedingHorizonPolicy",
    "SafetyFilter",
    "ValueGuide",
    "make_scheduler",
]
