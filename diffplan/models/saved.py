"""Networks that are saved each in a folder of its own, and read from there and nowhere else."""

from pathlib import Path
from typing import Any, Self

from diffusers import ConfigMixin, ModelMixin

WEIGHTS = "diffusion_pytorch_model.safetensors"


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
        return super().from_pretrained(folder, use_safetensors=True, local_files_only=True)
