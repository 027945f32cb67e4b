"""Other people's data formats, one class each: its fields are what the files do not say, ``read`` gives its episodes.

``diffplan.datasets.import_episodes`` puts what they read into a store.
"""

from diffplan.datasets.importers.eth_ucy import EthUcy
from diffplan.datasets.importers.lerobot import LeRobot
from diffplan.datasets.importers.madiff import Madiff
from diffplan.datasets.importers.minari import Minari
from diffplan.datasets.importers.npz import Npz
from diffplan.datasets.importers.omar import Omar
from diffplan.datasets.importers.overcooked import Overcooked
from diffplan.datasets.importers.recording import Importer, Recording
from diffplan.datasets.importers.robomimic import Robomimic
from diffplan.datasets.importers.rollouts import Rollout, Rollouts
from diffplan.datasets.importers.table import Table
from diffplan.datasets.importers.vault import Vault

__all__ = [
    "EthUcy",
    "Importer",
    "LeRobot",
    "Madiff",
    "Minari",
    "Npz",
    "Omar",
    "Overcooked",
    "Recording",
    "Robomimic",
    "Rollout",
    "Rollouts",
    "Table",
    "Vault",
]
