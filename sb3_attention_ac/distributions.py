"""Action distributions without the checks of their arguments: a loss that is not finite is caught before it does harm."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributions import Distribution


@contextmanager
def without_validation() -> Iterator[None]:
    """PyTorch's distributions made or asked in this context do not check their arguments: a tenth of a step's time."""
    validated = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(validated)
