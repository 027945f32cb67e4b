"""Networks, one a file."""

from diffplan.models.denoiser import JointDenoiser

__all__ = ["JointDenoiser"]
