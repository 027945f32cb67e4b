"""Networks that are saved each in a folder of its own, and read from there and nowhere else."""

from pathlib import Path
from textwrap import shorten
from typing import Any, Self, TypeVar

import torch
from diffusers import ConfigMixin, ModelMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from diffplan.checks import MISFIT
from diffplan.files import read_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
Network = TypeVar("Network", bound=ModelMixin)


def check_heads(width: int, num_heads: int) -> None:
    """Raises ``ValueError`` unless a token's channels divide among the attention heads."""
    if width % num_heads:
        near = max(1, width // num_heads) * num_heads
        raise ValueError(f"width={width} is not a multiple of num_heads={num_heads}; use {near}.")


class SavedNetwork(ModelMixin, ConfigMixin):
    """What all networks are: diffusers models that are never asked of a hub."""

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments: ``config`` without what diffusers notes beside them."""
        return {name: value for name, value in self.config.items() if not name.startswith("_")}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **unused: Any) -> Self:
        """Reads what ``save_pretrained`` wrote.

        Raises:
            ValueError: the folder does not hold a saved network.
        """
        if unused:
            raise TypeError(f"from_pretrained takes only a folder, got also {sorted(unused)}.")
        folder = Path(pretrained_model_name_or_path)
        missing = [name for name in (cls.config_name, WEIGHTS) if not (folder / name).is_file()]
        if missing:
            raise ValueError(
                f"{folder} is not a saved {cls.__name__} (no {', no '.join(missing)}); give the folder that "
                "save_pretrained wrote, or load the planner that holds one."
            )
        return read_network(cls, folder)


def read_network(network: type[Network], folder: Path) -> Network:
    """A network as ``save_pretrained`` wrote it: of this class, whatever the file says; nothing is looked up elsewhere.

    Raises:
        ValueError: the configuration makes no such network, or the weights are others or not finite.
    """
    file = folder / network.config_name
    config = read_json(file)
    if not isinstance(config, dict):  # diffusers would take a word for the name of a model to download
        raise ValueError(
            f"{file} does not describe a {network.__name__}: it holds no dictionary; save the network again."
        )
    try:
        if network.__module__.startswith("diffplan."):  # others may not be built without memory
            _check_shapes(network, config, folder / WEIGHTS)
        made, weights = network.from_config(config), load_file(folder / WEIGHTS)
        made.load_state_dict(weights)
        for name, one in made.named_parameters():
            if weights[name].dtype != one.dtype:
                raise RuntimeError(f"{name} is of {weights[name].dtype}, expected {one.dtype}")
            if not bool(one.isfinite().all()):
                raise RuntimeError(f"{name} is not finite")
        return made.eval()
    except (*MISFIT, ValueError, SafetensorError) as error:
        raise ValueError(
            f"{folder} does not hold a {network.__name__} and its weights ({shorten(str(error), 200)}); if another "
            "version of diffplan saved it, train it anew."
        ) from error


def _check_shapes(network: type[ModelMixin], config: dict[str, Any], weights: Path) -> None:
    """Raises ``RuntimeError`` where a file does not hold this network's weights, before memory is taken for these."""
    with safe_open(weights, "pt") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    if (depth := config.get("depth", 0)) > len(found):
        raise RuntimeError(f"depth={depth}, more than there are weights")
    with torch.device("meta"):
        expected = {name: list(one.shape) for name, one in network.from_config(config).state_dict().items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise RuntimeError(f"{name} has shape {found.get(name)}, expected {expected.get(name)}")
