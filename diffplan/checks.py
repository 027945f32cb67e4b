"""Checks of arguments that many functions take."""


def check_counts(seed: int, **counts: int) -> None:
    """Raises ``ValueError`` where one of them is not positive, or the seed is below 0."""
    if seed < 0:
        raise ValueError(f"seed={seed}; seeds are 0 or more.")
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count}; it must be at least 1.")
