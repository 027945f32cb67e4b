"""Every test runs offline, draws off screen, on one thread, and checks the shapes in the annotations of ``diffplan``.

A function whose signature names shapes is checked at every call (jaxtyping + beartype); users never pay for that.
What a function refuses on its own account comes first: a wrong shape ends in that error or in a ``TypeCheckError``.
"""

import dataclasses
import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

os.environ.update(HF_HUB_OFFLINE="1", MPLBACKEND="Agg", OMP_NUM_THREADS="1")
if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")

check_shapes = jaxtyping.jaxtyped


def shape_or_any(hint: Any) -> Any:
    """The hint if it names a shape, else ``Any``: plain types are mypy's business."""
    return hint if "jaxtyping." in repr(hint) else Any


def known_shape_or_any(hint: Any) -> Any:
    """The same without shapes such as "L+1", which can be checked only once L is known."""
    return Any if "+" in repr(hint) or "-" in repr(hint) else shape_or_any(hint)


def jaxtyped(function: Any = None, *, typechecker: Callable[..., Any]) -> Any:
    """Stands in for ``jaxtyping.jaxtyped`` in the import hook: checks only shapes, after the function's own checks."""
    if function is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if inspect.isclass(function):
        if dataclasses.is_dataclass(function) and "__init__" in vars(function):
            function.__init__ = jaxtyped(function.__init__, typechecker=typechecker)
        return function
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=known_shape_or_any(p.annotation)) for p in signature.parameters.values()]
    returned = shape_or_any(signature.return_annotation)
    if all(hint is Any for hint in (returned, *(p.annotation for p in parameters))):
        return function
    function.__signature__ = inspect.Signature(parameters, return_annotation=returned)
    checked = check_shapes(function, typechecker=typechecker)
    del function.__signature__

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return checked(*args, **kwargs)
        except jaxtyping.TypeCheckError:
            function(*args, **kwargs)
            raise

    return call


jaxtyping.jaxtyped = jaxtyped
jaxtyping.install_import_hook("diffplan", "beartype.beartype")


@pytest.fixture(scope="session")
def randomized() -> Callable[[Any], Any]:
    """Gives a planner random weights, so that everything has an effect: untrained networks return 0."""
    import torch

    def give(planner: Any) -> Any:
        torch.manual_seed(0)
        for parameter in planner.denoiser.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        return planner

    return give


@pytest.fixture(scope="session")
def crossing_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a dozen expert episodes of two robots that swap places."""
    from diffplan.datasets import collect_episodes

    folder = tmp_path_factory.mktemp("stores") / "crossing"
    collect_episodes("crossing-v0", out=folder, episodes=12, workers=0, env_options={"num_robots": 2}, progress=False)
    return folder
