"""What is public, where it lives, and what importing it loads."""

import json
import subprocess
import sys

import jaxtyping
import numpy as np
import pytest

import diffplan

HEAVY = {"torch", "diffusers", "accelerate", "matplotlib", "scipy"}


def loaded_by(code: str) -> set[str]:
    """The packages that a fresh interpreter has loaded after ``code``."""
    report = "import sys, json; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_diffplan_loads_nothing_heavy():
    assert loaded_by("import diffplan") & (HEAVY | {"numpy", "mujoco"}) == set()


def test_help_loads_nothing_heavy():
    code = "import sys; from diffplan.cli import main; sys.argv = ['diffplan', '--help']"
    assert loaded_by(f"{code}\ntry: main()\nexcept SystemExit: pass") & (HEAVY | {"mujoco"}) == set()


@pytest.mark.parametrize(
    "module",
    [
        "diffplan.doctor",
        "diffplan.trajectory",
        "diffplan.datasets.store",
        "diffplan.datasets.collection",
        "diffplan.envs.crossing",
        "diffplan.envs.transport",
        "diffplan.processes.team",
    ],
)
def test_recording_and_stepping_needs_no_torch(module: str):
    assert loaded_by(f"import {module}") & {"torch", "diffusers", "accelerate"} == set()


@pytest.mark.parametrize("name", diffplan.__all__)
def test_every_public_name_resolves(name: str):
    assert getattr(diffplan, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="No diffplan attribute difusion_planner"):
        _ = diffplan.difusion_planner


def test_the_test_run_checks_shape_annotations():
    with pytest.raises(jaxtyping.TypeCheckError, match="N H A"):
        diffplan.Cells(np.zeros((2, 8, 4)), np.zeros((2, 9, 1)))
