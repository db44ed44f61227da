"""
Action distributions at less cost: without the checks of their arguments (a loss that is not finite is caught before it does
harm), and samples of the common ones without making them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch as th
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


def sample_categorical(logits: th.Tensor) -> th.Tensor:
    """
    The Gumbel-max trick: with -log(E) of exponential noise E added, the largest logit is a sample of their softmax.

    :param logits: Unnormalized, [N, n]
    :return: Sampled categories, [N]
    """
    return (logits - th.empty_like(logits).exponential_().log()).argmax(dim=-1)


def sample_gaussian(mean: th.Tensor, log_std: th.Tensor) -> th.Tensor:
    """
    :param mean: [N, n]
    :param log_std: Logarithm of the standard deviations, [n]
    :return: Samples, [N, n]
    """
    return mean + log_std.exp() * th.randn_like(mean)
