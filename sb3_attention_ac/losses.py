"""The losses of PPO (Schulman et al. 2017, https://arxiv.org/abs/1707.06347), as functions of tensors of one shape."""

import torch as th
import torch.nn.functional as F

from sb3_attention_ac.distributed import std_mean


class NotFiniteError(FloatingPointError, ValueError):
    """A loss or gradient is NaN or infinite. A ``ValueError`` too: RL Zoo's search prunes a trial that raises one."""


def normalized(advantages: th.Tensor) -> th.Tensor:
    """
    :param advantages: A minibatch of them
    :return: The same with zero mean and unit standard deviation; a single one as it is (SB3 issue #325)
    """
    if advantages.numel() < 2:
        return advantages
    std, mean = std_mean(advantages)
    return (advantages - mean) / (std + 1e-8)


def clipped_surrogate_loss(ratio: th.Tensor, advantages: th.Tensor, clip_range: float) -> th.Tensor:
    """
    Equation 7 of PPO. With ``n_epochs=1`` and one minibatch the ratio is one and this is A2C's policy gradient.

    :param ratio: pi(a | s) / pi_old(a | s)
    :param advantages: Estimated advantages
    :param clip_range: epsilon
    :return: The loss
    """
    clipped = th.clamp(ratio, 1 - clip_range, 1 + clip_range)
    return -th.min(advantages * ratio, advantages * clipped).mean()


def value_loss(values: th.Tensor, old_values: th.Tensor, returns: th.Tensor, clip_range_vf: float | None) -> th.Tensor:
    """
    :param values: V(s)
    :param old_values: V(s) before the update
    :param returns: TD(lambda) returns
    :param clip_range_vf: How far a value may move from the old one, None for any distance (depends on the reward scale)
    :return: Mean squared error
    """
    if clip_range_vf is not None:
        values = old_values + th.clamp(values - old_values, -clip_range_vf, clip_range_vf)
    return F.mse_loss(values, returns)


def entropy_loss(entropy: th.Tensor | None, log_prob: th.Tensor) -> th.Tensor:
    """
    :param entropy: Entropy of the action distributions, None if it has no analytical form
    :param log_prob: log pi(a | s), to estimate it from
    :return: Negative mean entropy
    """
    return log_prob.mean() if entropy is None else -entropy.mean()


def approximate_kl(log_ratio: th.Tensor) -> th.Tensor:
    """
    Estimate of KL(pi_old || pi) that is never negative (http://joschu.net/blog/kl-approx.html).

    :param log_ratio: log pi(a | s) - log pi_old(a | s)
    :return: The mean estimate
    """
    return (th.exp(log_ratio) - 1 - log_ratio).mean()
