"""The ``.npz`` file that ``export_npz`` writes: flat arrays over all episodes, as in a store, and the spec as JSON."""

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from diffplan.datasets.importers.recognition import wrong_format
from diffplan.datasets.importers.recording import Recording
from diffplan.spec import JointSpec
from diffplan.trajectory import Trajectory

ROWS, STEPS = ("observations", "agent_mask"), ("actions", "rewards", "terminations", "truncations")

_NAMES = (*ROWS, *STEPS, "offsets", "spec", "labels", "source")


@dataclass(frozen=True)
class Npz:
    """Imports what ``export_npz`` wrote, or an archive with the same arrays; it is read into memory as a whole.

    Args:
        source: the archive: the arrays of a store (L + 1 rows an episode), offsets, and spec and labels as JSON text.
    """

    source: Path

    def read(self) -> Recording:
        source = Path(self.source)
        if not source.is_file() or not zipfile.is_zipfile(source):
            raise wrong_format(source, "npz", "an .npz archive")
        with zipfile.ZipFile(source) as archive:
            missing = [name for name in _NAMES if f"{name}.npy" not in archive.namelist()]
        if missing:
            raise wrong_format(source, "npz", f"an archive that has {missing}, too")
        try:
            with np.load(source, allow_pickle=False) as file:
                arrays = {name: file[name] for name in _NAMES}
            spec = JointSpec.from_dict(json.loads(str(arrays["spec"])))
            labels, offsets = json.loads(str(arrays["labels"])), arrays["offsets"].tolist()
        except (ValueError, zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{source} is not an archive of episodes ({error}); write one with export_npz.") from error

        def episodes() -> Iterator[Trajectory]:
            for index, (start, stop) in enumerate(pairwise(offsets)):
                rows = {name: arrays[name][start:stop] for name in ROWS}
                steps = {name: arrays[name][start : stop - 1] for name in STEPS}
                yield Trajectory(spec, **rows, **steps, labels=labels[index])

        return Recording(spec, episodes, str(arrays["source"]))
