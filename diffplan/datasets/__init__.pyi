"""The names that load on first use, each with its home."""

from .collection import collect_episodes as collect_episodes
from .collection import run_episode as run_episode
from .editing import repair_store as repair_store
from .editing import split_store as split_store
from .editing import subsample_store as subsample_store
from .exporting import export_minari as export_minari
from .exporting import export_npz as export_npz
from .importing import import_episodes as import_episodes
from .merging import merge_stores as merge_stores
from .normalizer import Normalizer as Normalizer
from .store import TrajectoryStore as TrajectoryStore
from .styles import StyleTable as StyleTable
from .windows import TrajectoryDataset as TrajectoryDataset
from .windows import WindowBatch as WindowBatch
from .windows import load_dataset as load_dataset
