"""Recorded episodes: the store on disk, windows for training, normalisers, collection.

Only what touches tensors loads torch: the store and the collection do not.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffplan.datasets.collection import collect_episodes, run_episode
    from diffplan.datasets.editing import repair_store, split_store, subsample_store
    from diffplan.datasets.exporting import export_minari, export_npz
    from diffplan.datasets.importing import import_episodes
    from diffplan.datasets.merging import merge_stores
    from diffplan.datasets.normalizer import Normalizer
    from diffplan.datasets.store import TrajectoryStore
    from diffplan.datasets.styles import StyleTable
    from diffplan.datasets.windows import TrajectoryDataset, WindowBatch, load_dataset

__all__ = [
    "Normalizer",
    "StyleTable",
    "TrajectoryDataset",
    "TrajectoryStore",
    "WindowBatch",
    "collect_episodes",
    "export_minari",
    "export_npz",
    "import_episodes",
    "load_dataset",
    "merge_stores",
    "repair_store",
    "run_episode",
    "split_store",
    "subsample_store",
]

_HOMES = {
    "Normalizer": "normalizer",
    "StyleTable": "styles",
    "TrajectoryDataset": "windows",
    "TrajectoryStore": "store",
    "WindowBatch": "windows",
    "collect_episodes": "collection",
    "export_minari": "exporting",
    "export_npz": "exporting",
    "import_episodes": "importing",
    "load_dataset": "windows",
    "merge_stores": "merging",
    "repair_store": "editing",
    "run_episode": "collection",
    "split_store": "editing",
    "subsample_store": "editing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
