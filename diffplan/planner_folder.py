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
    if (Path(path) / "manifest.json").is_file():
        raise ValueError(
            f"{path} is a store of episodes, no planner; `diffplan train {path} --out RUN` makes one of it."
        )
    if team := team_folders(path):
        raise ValueError(f"{path} holds a planner for every agent; name one of them, e.g. {next(iter(team.values()))}.")
    if (Path(path) / "metrics.jsonl").is_file():
        raise ValueError(f"{path} is a run that has not ended; the command that began it goes on with --resume.")
    raise ValueError(f"{path} is not a saved planner (no {INDEX}); make one with `diffplan train DATA --out RUN`.")


def team_folders(path: str | Path) -> dict[str, Path]:
    """{agent: its planner's folder} of a run in which every agent learned for itself; {} where it is none."""
    found = sorted(Path(path).glob(f"planners/*/{INDEX}"))
    return {index.parent.name: index.parent for index in found}


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
