"""
Action distributions at less cost: without the checks of their arguments (a loss that is not finite is caught before it does
harm), and samples, log probabilities and entropies of the common ones without making them.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch as th
import torch.nn.functional as F
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
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


def sample_gsde(noise: StateDependentNoiseDistribution, mean: th.Tensor, latent_sde: th.Tensor) -> th.Tensor:
    """
    :param noise: What holds the present noise
    :param mean: [N, n]
    :param latent_sde: What the noise is made of, [N, latent_dim]
    :return: Samples, squashed if its are, [N, n]; their variance is not asked for
    """
    actions = mean + noise.get_noise(latent_sde)
    squashed: th.Tensor = actions if noise.bijector is None else noise.bijector.forward(actions)
    return squashed


def categorical_log_prob_and_entropy(logits: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    :param logits: Unnormalized, [N, n]
    :param actions: Categories, [N]
    :return: Their log probabilities [N], and the entropies of the distributions [N]
    """
    log_probs = F.log_softmax(logits, dim=-1)
    entropy = -(log_probs.exp() * log_probs.clamp(min=th.finfo(log_probs.dtype).min)).sum(dim=-1)  # 0 ln 0 = 0
    return log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1), entropy


def gaussian_log_prob_and_entropy(mean: th.Tensor, log_std: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    :param mean: [N, n]
    :param log_std: Logarithm of the standard deviations, [n], or of a shape that broadcasts to the means'
    :param actions: [N, n]
    :return: Log probabilities of the actions [N], and the entropies of the distributions [N]
    """
    deviations = (actions - mean) * th.exp(-log_std)
    log_volume = (log_std + 0.5 * math.log(2 * math.pi)).expand_as(mean).sum(dim=-1)
    log_prob = -0.5 * deviations.square().sum(dim=-1) - log_volume
    return log_prob, log_volume + 0.5 * mean.shape[-1]
