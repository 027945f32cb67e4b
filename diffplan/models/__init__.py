"""Networks, one a file."""

from diffplan.models.denoiser import JointDenoiser
from diffplan.models.noise import NoisePolicy
from diffplan.models.partner import PartnerEncoder
from diffplan.models.value import ValueFunction

__all__ = ["JointDenoiser", "NoisePolicy", "PartnerEncoder", "ValueFunction"]
