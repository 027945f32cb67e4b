"""Sampling plans, and acting on them."""

from diffplan.planners.planner import DiffusionPlanner, Question
from diffplan.planners.policy import RecedingHorizonPolicy
from diffplan.planners.safety import SafetyFilter
from diffplan.planners.sampling import make_scheduler

__all__ = ["DiffusionPlanner", "Question", "RecedingHorizonPolicy", "SafetyFilter", "make_scheduler"]
