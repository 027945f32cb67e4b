"""Says whether this machine can run diffplan, and what to do where it cannot."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diffplan.extras import how_to_install

FREE_GIGABYTES = 1.0
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SCENE = "<mujoco><worldbody><body><freejoint/><geom size='0.1'/></body></worldbody></mujoco>"
RENDER = f"""
import mujoco
model = mujoco.MjModel.from_xml_string("{SCENE}")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    raise SystemExit(not renderer.render().any())
"""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: is it as it should be, what was found, what to do, can diffplan work without it."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    required: bool = True


def doctor() -> list[Check]:
    """Looks at Python, the packages, torch, MuJoCo, offscreen rendering, the disk and the launcher's variables.

    Example:
        >>> checks = doctor()
        >>> checks[0].name, checks[0].ok
        ('Python', True)
    """
    return [
        check_python(),
        *check_packages(),
        check_torch(),
        check_mujoco(),
        check_rendering(os.environ),
        check_disk(Path.cwd()),
        check_launcher(os.environ),
    ]


def print_checks(checks: list[Check], console: Console | None = None) -> int:
    """Prints the checks as a table; returns the exit code: 1 if something required is broken, else 0."""
    table = Table(box=None, pad_edge=False)
    for title in ("", "check", "found", "what to do"):
        table.add_column(title, overflow="fold")
    for check in checks:
        mark = "[green]ok[/]" if check.ok else "[red]broken[/]" if check.required else "[yellow]missing[/]"
        table.add_row(mark, *map(escape, (check.name, check.detail, check.remedy)))
    (console or Console()).print(table)
    return int(any(check.required and not check.ok for check in checks))


def check_python() -> Check:
    ok = sys.version_info >= (3, 11)
    detail = f"{platform.python_version()}, {platform.system()}, {platform.machine()}"
    return Check("Python", ok, detail, "" if ok else "use Python 3.11, 3.12 or 3.13")


def check_packages() -> list[Check]:
    """Every required package against the version that diffplan asks for, then every optional group of packages."""
    try:
        declared = list(map(Requirement, importlib.metadata.requires("diffplan") or []))
    except importlib.metadata.PackageNotFoundError:
        return [Check("diffplan", False, "not installed, versions not compared", "pip install -e .", required=False)]
    required = [one for one in declared if one.marker is None or one.marker.evaluate({"extra": ""})]
    extras = importlib.metadata.metadata("diffplan").get_all("Provides-Extra", [])
    optional = [one for one in declared if one not in required]
    return [
        *map(check_package, required),
        *(
            check_extra(extra, [one for one in optional if one.marker and one.marker.evaluate({"extra": extra})])
            for extra in extras
            if extra != "test"
        ),
    ]


def check_package(requirement: Requirement) -> Check:
    """One installed package against its requirement."""
    remedy = f'pip install "{requirement.name}{requirement.specifier}"'
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Check(requirement.name, False, "not installed", remedy)
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(requirement.name, False, f"{version}, but diffplan needs {requirement.specifier}", remedy)
    return Check(requirement.name, True, version)


def check_extra(extra: str, requirements: list[Requirement]) -> Check:
    """One optional group: everything in it must be there, but diffplan works without it."""
    parts = [check_package(requirement) for requirement in requirements]
    ok = all(part.ok for part in parts)
    detail = "; ".join(f"{part.name} {part.detail}" for part in parts)
    clash = any("but diffplan needs" in part.detail for part in parts)
    remedy = "in an environment of its own: " * clash + how_to_install(extra)
    return Check(f"extra {extra}", ok, detail, "" if ok else remedy, required=False)


def check_torch() -> Check:
    """Whether torch multiplies, on which device, with how many threads, and whether bfloat16 is fast there."""
    try:
        import torch

        from diffplan.planners.estimator import uses_bfloat16

        total = float((torch.ones(8, 8) @ torch.ones(8, 8)).sum())
    except (ImportError, OSError, RuntimeError) as error:
        return Check("torch computes", False, str(error), "reinstall torch for this machine: https://pytorch.org")
    cuda = torch.cuda.is_available()
    device, half = torch.cuda.get_device_name() if cuda else "CPU", uses_bfloat16("auto", cuda)
    detail = f"{device}, {torch.get_num_threads()} threads, bfloat16 {'fast' if half else 'slow'}"
    return Check("torch computes", total == 512, detail)


def check_mujoco() -> Check:
    """Whether a body falls."""
    try:
        import mujoco

        model = mujoco.MjModel.from_xml_string(SCENE)
        data = mujoco.MjData(model)
        mujoco.mj_step(model, data, 10)
    except (ImportError, OSError, ValueError) as error:
        return Check("MuJoCo steps", False, str(error), 'pip install --force-reinstall "mujoco>=3.5"')
    return Check("MuJoCo steps", bool(data.qvel[2] < 0), f"MuJoCo {mujoco.mj_versionString()}")


def check_rendering(environment: Mapping[str, str]) -> Check:
    """Whether MuJoCo draws off screen; tried in a process of its own, for a graphics library may abort it."""
    backend = environment.get("MUJOCO_GL") or "MuJoCo's default"
    try:
        result = subprocess.run(
            [sys.executable, "-c", RENDER], env=dict(environment), capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        failure = "no picture within 60 s"
    else:
        failure = "" if result.returncode == 0 else (result.stderr.strip().splitlines() or ["an empty picture"])[-1]
    if not failure:
        return Check("MuJoCo draws off screen", True, backend, required=False)
    remedy = "set MUJOCO_GL=egl (needs libegl1) or MUJOCO_GL=osmesa (needs libosmesa6); only pictures need this"
    return Check("MuJoCo draws off screen", False, f"{backend}: {failure}", remedy, required=False)


def check_disk(folder: Path) -> Check:
    """Whether runs can be written below ``folder``."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        return Check("disk", False, f"{folder}: {error.strerror}", "change to a folder that you may write to")
    ok = free >= FREE_GIGABYTES
    return Check("disk", ok, f"{folder}: {free:.1f} GB free", "" if ok else f"free {FREE_GIGABYTES:g} GB")


def check_launcher(environment: Mapping[str, str]) -> Check:
    """Whether the variables of a multi-process launcher are all there, or none of them."""
    present = {name: environment[name] for name in LAUNCHER if name in environment}
    if not present:
        return Check("launcher", True, "none: one process")
    detail, missing = ", ".join(f"{name}={value}" for name, value in present.items()), set(LAUNCHER) - set(present)
    numbers = [present.get(name, "") for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE")]
    if missing or not all(number.isdecimal() for number in numbers) or not int(numbers[1]) < int(numbers[2]):
        return Check("launcher", False, detail, "unset these, or start with torchrun, which sets all of them")
    return Check("launcher", True, detail)
