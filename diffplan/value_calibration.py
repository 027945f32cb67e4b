"""Is a value function calibrated? What it expected of recorded teams against what they got.

Compared is ``V(o_t)`` of the team with its realised discounted return: the rewards until the recording ends, or an
agent ends, leaves or joins, K steps on, plus ``discount^K V(o_{t+K})`` of the agents that were not terminated. So it is
realised whole where the episode terminated, and bootstrapped where it was truncated; ``Calibration.trusted`` says how
much of it was taken on trust.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from diffplan.checks import check_counts
from diffplan.datasets.transitions import take_transitions
from diffplan.datasets.windows import TrajectoryDataset
from diffplan.models.value import ValueFunction
from diffplan.value_training import check_fits

_CHUNK = 256


@dataclass(frozen=True)
class Calibration:
    """Predicted and realised team returns at K recorded steps, in physical rewards.

    ``trusted`` is the mean weight of the value function's own estimate in the realised returns: 0 where everything
    terminated (then nothing is circular), near 1 where recordings are short for the discount.
    """

    predicted: Float[np.ndarray, "K"]
    realised: Float[np.ndarray, "K"]
    trusted: float = 0.0

    def __repr__(self) -> str:
        numbers = f"slope {self.slope:.2f}, correlation {self.correlation:.2f}, error {self.error:.2f}"
        return f"Calibration({len(self.predicted)} steps: {numbers}, bias {self.bias:+.3g}, trusted {self.trusted:.2f})"

    @property
    def slope(self) -> float:
        """Of the least-squares line of realised over predicted: 1 is ideal, less means too bold predictions."""
        spread = self.predicted.var()
        return float(np.cov(self.predicted, self.realised, bias=True)[0, 1] / spread) if spread > 0 else 0.0

    @property
    def correlation(self) -> float:
        """Pearson's; 0 where either side is constant."""
        if not (self.predicted.std() > 0 and self.realised.std() > 0):
            return 0.0
        return float(np.corrcoef(self.predicted, self.realised)[0, 1])

    @property
    def bias(self) -> float:
        """Mean of predicted - realised, in rewards; positive where training favoured the data's better part."""
        return float((self.predicted - self.realised).mean())

    @property
    def error(self) -> float:
        """Expected calibration error: how far bins' means are apart, over the spread of realised returns."""
        predicted, realised, _ = self.bins()
        return float(np.abs(predicted - realised).mean() / max(float(self.realised.std()), 1e-12))

    def bins(self, count: int = 10) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"], Float[np.ndarray, "k"]]:
        """Mean predicted, mean realised and its standard error, in ``count`` bins of about equally many predictions."""
        parts = np.array_split(np.argsort(self.predicted, kind="stable"), min(count, len(self.predicted)))
        predicted, realised = (np.array([x[part].mean() for part in parts]) for x in (self.predicted, self.realised))
        return predicted, realised, np.array([self.realised[part].std() / len(part) ** 0.5 for part in parts])


@torch.inference_mode()
def calibration(
    value: ValueFunction,
    dataset: TrajectoryDataset,
    *,
    samples: int = 2_000,
    start_share: float = 0.0,
    seed: int = 0,
) -> Calibration:
    """Compares predicted with realised team returns at random steps of a dataset.

    Args:
        value: a trained value function.
        dataset: held-out episodes (``load_dataset(..., episodes=...)``), normalised as those of training.
        samples: how many steps, drawn with replacement.
        start_share: share of them at episodes' starts, where the rest of a recording is longest and least is trusted.
        seed: of the draw.

    Raises:
        ValueError: value function and dataset do not fit, fewer than 2 samples, no share, or a seed below 0.
    """
    check_fits(value, dataset)
    check_counts(seed)
    if samples < 2 or not 0 <= start_share <= 1:
        raise ValueError(f"samples={samples}, start_share={start_share}; choose 2 or more, and a share, 0 to 1.")
    indices = dataset.draw(samples, np.random.default_rng(seed), start_share)
    longest = int(dataset.store.lengths[dataset.episodes].max())
    parts = [_compared(value, dataset, part, longest) for part in np.array_split(indices, -(-samples // _CHUNK))]
    predicted, realised, trusted = map(np.concatenate, zip(*parts, strict=True))
    return Calibration(predicted, realised, float(trusted.mean()))


def _compared(
    value: ValueFunction, dataset: TrajectoryDataset, indices: Int[np.ndarray, "K"], longest: int
) -> tuple[Float[np.ndarray, "K"], Float[np.ndarray, "K"], Float[np.ndarray, "K"]]:
    """Predicted and realised team returns from some windows' presents on, and the weight of what is bootstrapped."""
    batch = take_transitions(dataset, indices, value.config.discount, longest)
    device = next(value.parameters()).device
    roles = torch.from_numpy(dataset.spec.role_index).to(device)
    now, then = (
        value.state_values(torch.from_numpy(seen).to(device), roles, torch.from_numpy(mask).to(device)).cpu().numpy()
        for seen, mask in ((batch.observations, batch.mask), (batch.next_observations, batch.next_mask))
    )
    scale, discounts = value.config.reward_scale, batch.discounts[:, None] * batch.mask
    realised = (batch.returns + scale * discounts * then).sum(-1, dtype=np.float64)
    trusted = (discounts * batch.next_mask).sum(-1) / np.maximum(batch.mask.sum(-1), 1)
    return scale * now.sum(-1, dtype=np.float64), realised, trusted
