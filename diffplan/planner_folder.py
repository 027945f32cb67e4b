"""Where a saved planner lies, and for whom it plans: what can be known without loading a network."""

from pathlib import Path

from diffplan.files import read_json
from diffplan.spec import JointSpec

INDEX = "model_index.json"


def find_planner(path: str | Path) -> Path:
    """The planner's folder: ``path``, or ``path/planner`` of a training run. Raises ``ValueError`` if there is none."""
    for folder in (Path(path).resolve(), Path(path).resolve() / "planner"):
        for candidate in (folder, replaced(folder)):
            if (candidate / INDEX).is_file():
                return candidate
    raise ValueError(f"{path} is not a saved planner (no {INDEX}); make one with `diffplan train DATA --out {path}`.")


def replaced(path: Path) -> Path:
    """Where the planner that was at ``path`` is kept while another takes its place."""
    return path.with_name(f".{path.name}.old")


def read_spec(path: str | Path) -> JointSpec:
    """The agents of the planner at ``path``. Raises ``ValueError`` where there is none, or its index is damaged."""
    index = find_planner(path) / INDEX
    content = read_json(index)
    if not isinstance(content, dict) or not isinstance(content.get("spec"), dict):
        raise ValueError(f"{index} lacks the planner's spec; save the planner again.")
    return JointSpec.from_dict(content["spec"])
