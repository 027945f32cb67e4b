"""Networks, one a file."""

from diffplan.models.denoiser import JointDenoiser
from diffplan.models.value import ValueFunction

__all__ = ["JointDenoiser", "ValueFunction"]
