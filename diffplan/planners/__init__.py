"""Sampling plans, guiding them, and acting on them."""

from diffplan.planners.channel import Link
from diffplan.planners.futures import Futures
from diffplan.planners.guides import ConstraintGuide, Estimate, GoalGuide, Guide, ValueGuide
from diffplan.planners.manners import Manners
from diffplan.planners.member import TeamMember
from diffplan.planners.messages import Message
from diffplan.planners.particles import PartnerGuide, PartnerParticles
from diffplan.planners.planner import DiffusionPlanner
from diffplan.planners.policy import RecedingHorizonPolicy
from diffplan.planners.projection import projected
from diffplan.planners.question import Question, Sampling
from diffplan.planners.representatives import representatives
from diffplan.planners.safety import SafetyFilter
from diffplan.planners.sampling import make_scheduler
from diffplan.planners.team import DecentralizedTeam, consistency

__all__ = [
    "ConstraintGuide",
    "DecentralizedTeam",
    "DiffusionPlanner",
    "Estimate",
    "Futures",
    "GoalGuide",
    "Guide",
    "Link",
    "Manners",
    "Message",
    "PartnerGuide",
    "PartnerParticles",
    "Question",
    "RecedingHorizonPolicy",
    "SafetyFilter",
    "Sampling",
    "TeamMember",
    "ValueGuide",
    "consistency",
    "make_scheduler",
    "projected",
    "representatives",
]
