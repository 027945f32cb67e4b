"""Muon against torch's own and against what it promises."""

import pytest
import torch

from diffplan.optimizers import Muon, orthogonal

SHAPES = ((24, 8), (8, 24), (8, 8), (24, 8))


def test_it_moves_as_torch_does_up_to_the_precision_of_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in SHAPES]
    ours, theirs = ([torch.nn.Parameter(value.clone()) for value in start] for _ in range(2))
    optimizers = (
        Muon(ours, lr=0.1, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other, before in zip(ours, theirs, start, strict=True):
        assert (mine - other).norm() < 0.02 * (mine - before).norm()


def test_orthogonal_matrices_have_singular_values_near_one() -> None:
    values = torch.linalg.svdvals(orthogonal(torch.randn(5, 16, 64, generator=torch.Generator().manual_seed(1))))
    assert values.min() > 0.5 and values.max() < 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_matrix_without_gradient_stays(dtype: torch.dtype) -> None:
    moved, still = torch.nn.Parameter(torch.eye(4)), torch.nn.Parameter(torch.eye(4))
    moved.grad = torch.ones(4, 4)
    Muon([moved, still], dtype=dtype).step()
    assert torch.equal(still, torch.eye(4)) and not torch.equal(moved, torch.eye(4)) and moved.dtype == torch.float32
