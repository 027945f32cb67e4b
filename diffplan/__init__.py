"""Diffusion models that plan for several robots at once.

Everything a user needs hangs here, listed in ``__init__.pyi``, and loads on first use: ``import diffplan`` alone loads
neither torch nor diffusers.

Example:
    >>> import diffplan as dp
    >>> role = dp.Role(observation_size=4, action_low=(-1.0, -1.0), action_high=(1.0, 1.0))
    >>> dp.JointSpec({"left": "arm", "right": "arm"}, {"arm": role})
    JointSpec(2 agents: left, right; O=4 A=2 D=6; dt=1 s)
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
