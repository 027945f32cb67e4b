"""Muon: gradient descent whose step is the nearest orthogonal matrix to the momentum (Jordan et al., 2024).

And what optimisers remember, as named tensors for checkpoints.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of the quintic a x + b x^3 + c x^5, which takes (0, 1] near 1 in 5 steps
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, its step as large as AdamW's (arXiv 2502.16982, eq. 4).

    ``torch.optim.Muon`` always computes in bfloat16, which many processors emulate: 0.64 s a step for 0.8 M parameters
    where float32 takes 0.02. This one computes in ``dtype``, and all matrices of one shape at once.

    Args:
        params: matrices.
        lr: the step's root mean square is 0.2 x lr.
        momentum: share of the momentum that a step keeps.
        weight_decay: share of a weight that a step of learning rate 1 takes away.
        dtype: what to orthogonalise in.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 8e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "dtype": dtype})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Moves every matrix that has a gradient."""
        for group in self.param_groups:
            matrices = sorted((p for p in group["params"] if p.grad is not None), key=_wide_shape)
            for _, alike in groupby(matrices, key=_wide_shape):
                self._step(list(alike), group)

    def _step(self, matrices: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Moves matrices that have, lying on their longer side, one shape."""
        directions = []
        for matrix in matrices:
            gradient: Tensor = matrix.grad  # type: ignore[assignment]  # step passes only those that have one
            momentum = self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix))
            momentum.lerp_(gradient, 1 - group["momentum"])
            directions.append(_wide(torch.lerp(gradient, momentum, group["momentum"])))
        steps = orthogonal(torch.stack(directions).to(group["dtype"])).float()
        size = group["lr"] * 0.2 * steps.shape[-1] ** 0.5
        for matrix, step in zip(matrices, steps, strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            _wide(matrix).add_(step, alpha=-size)


def orthogonal(matrices: Float[Tensor, "K m n"]) -> Float[Tensor, "K m n"]:
    """Every matrix (m <= n) with its singular values taken near 1, by five Newton-Schulz steps."""
    a, b, c = NEWTON_SCHULZ
    matrices = matrices / matrices.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = matrices @ matrices.mT
        matrices = torch.baddbmm(matrices, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), matrices, beta=a)
    return matrices


def _wide(matrix: Tensor) -> Tensor:
    """The matrix or its transpose, whichever is at least as wide as it is high."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def _wide_shape(matrix: Tensor) -> tuple[int, ...]:
    return tuple(_wide(matrix).shape)


@torch.no_grad()
def follow(averages: Sequence[Tensor], current: Sequence[Tensor], decay: float) -> None:
    """Exponential moving averages, in place: ``decay`` of what they were, the rest of what is now."""
    get_ema_multi_avg_fn(decay)(list(averages), list(current), None)  # type: ignore[no-untyped-call]


def optimizer_tensors(
    optimizers: Sequence[torch.optim.Optimizer], parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """What the optimisers remember of every parameter, named ``"exp_avg/PARAMETER"`` and so on."""
    found: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        found |= {f"{key}/{name}": value for key, value in _memory(optimizers, parameter).items()}
    return found


def load_optimizer_tensors(
    optimizers: Sequence[torch.optim.Optimizer],
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Gives the optimisers back what ``optimizer_tensors`` found among ``tensors``.

    Raises ``RuntimeError`` where these are of another network: a step of theirs would write beyond it.
    """
    for name, parameter in parameters.items():
        ending = f"/{name}"
        memory = _memory(optimizers, parameter)
        memory.clear()
        for key, value in tensors.items():
            if key.endswith(ending):
                kind = key.removesuffix(ending)
                expected = () if kind == "step" else parameter.shape
                if value.shape != expected or not value.is_floating_point():  # fused steps would write beyond it
                    raise RuntimeError(f"{key} is {value.dtype} of shape {[*value.shape]}, expected {[*expected]}")
                memory[kind] = value.to(parameter.device, copy=True)
        if memory and {*memory} not in ({"momentum_buffer"}, {"step", "exp_avg", "exp_avg_sq"}):
            raise RuntimeError(f"of {name} the optimiser remembers {sorted(memory)}")


def _memory(optimizers: Sequence[torch.optim.Optimizer], parameter: nn.Parameter) -> dict[str, Tensor]:
    """What the optimiser of a parameter remembers about it."""
    mine = (one for one in optimizers if any(parameter is other for other in one.param_groups[0]["params"]))
    memory: dict[str, Tensor] = next(mine).state[parameter]
    return memory
