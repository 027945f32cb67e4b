"""The source archive and the wheel: what they hold, and that the wheel works away from the checkout."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import diffplan

ROOT = Path(__file__).parents[1]


def run(*arguments: str, **options: str | Path | dict[str, str]) -> str:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, **options).stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the checkout, the source archive made of it, and the wheel made of that archive."""
    folder = tmp_path_factory.mktemp("build")
    leave_out = shutil.ignore_patterns(".*", "runs", "build", "dist", "__pycache__", "*.egg-info")
    copy = shutil.copytree(ROOT, folder / "checkout", symlinks=True, ignore=leave_out)
    run("-m", "build", "--no-isolation", "--outdir", str(folder), str(copy))
    return folder


@pytest.fixture(scope="module")
def modules(archives: Path) -> set[str]:
    """What the package consists of, as paths from the root."""
    copy = archives / "checkout"
    return {str(path.relative_to(copy)) for path in (copy / "diffplan").rglob("*.py")}


def test_the_wheel_holds_the_package_and_nothing_else(archives: Path, modules: set[str]):
    names = zipfile.ZipFile(next(archives.glob("*.whl"))).namelist()
    about = f"diffplan-{diffplan.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"diffplan", about}
    assert {name for name in names if name.endswith(".py")} == modules
    assert {"diffplan/py.typed", f"{about}/licenses/LICENSE"} <= set(names)


def test_the_source_archive_holds_what_a_build_needs(archives: Path, modules: set[str]):
    with tarfile.open(next(archives.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"pyproject.toml", "setup.cfg", "README.md", "LICENSE", "diffplan/py.typed", *modules} <= names


def test_the_wheel_works_away_from_the_checkout(archives: Path, tmp_path: Path):
    wheel = str(next(archives.glob("*.whl")))
    run("-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(tmp_path / "site"), wheel)
    named = "diffplan.__file__, diffplan.__version__, diffplan.Plan.__module__, diffplan.TrajectoryStore.__module__"
    code = f"import diffplan; print({named})"
    printed = run("-c", code, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")})
    assert printed.split() == [
        str(tmp_path / "site" / "diffplan" / "__init__.py"),
        diffplan.__version__,
        "diffplan.trajectory",
        "diffplan.datasets.store",
    ]
