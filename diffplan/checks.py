"""Checks of arguments that many functions take, and what comes of files of something else."""

MISFIT = (AttributeError, TypeError, LookupError, ArithmeticError, RuntimeError)
"""What code raises where a file of the right form holds something else than it should."""


def check_counts(seed: int, **counts: int) -> None:
    """Raises ``ValueError`` where one of them is not positive, or the seed is below 0."""
    if seed < 0:
        raise ValueError(f"seed={seed}; seeds are 0 or more.")
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count}; it must be at least 1.")
