"""Targets of any scale, normalized by their mean and standard deviation."""

import torch as th
from torch import nn

from sb3_attention_ac.distributed import var_mean

MOMENTUM = 0.1
RELATIVE_EPS = 1e-6  # of the mean: less than this is rounding, not variation
EPS = 1e-20


class TargetNormalizer(nn.Module):
    """
    Normalizes by the statistics of a batch, and keeps running ones for :meth:`denormalize` and for single targets. As
    ``BatchNorm1d`` without an affine part, but its epsilon goes with the targets' scale.

    :param width: Width of a target, D
    """

    running_mean: th.Tensor
    running_var: th.Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("running_mean", th.zeros(width))
        self.register_buffer("running_var", th.ones(width))

    def forward(self, target: th.Tensor) -> th.Tensor:
        """
        :param target: [N, W, D]
        :return: Same shape, about zero mean and unit variance
        """
        flat = target.flatten(0, 1)  # [N * W, D]
        # Where a target is not finite, or its square, training stops at the losses; running statistics stay as good as the
        # parameters
        flat = th.where(th.isfinite(flat), flat, self.running_mean)
        mean, var = self.running_mean, self.running_var
        if self.training and len(flat) > 1:  # one target alone has no variance
            batch_var, batch_mean, n = var_mean(flat)
            unbiased = batch_var * n / (n - 1)
            is_finite = th.isfinite(batch_mean) & th.isfinite(unbiased)
            mean, var = th.where(is_finite, batch_mean, mean), th.where(is_finite, batch_var, var)
            self.running_mean.lerp_(mean, MOMENTUM)
            self.running_var.lerp_(th.where(is_finite, unbiased, self.running_var), MOMENTUM)
        return ((flat - mean) / _std(mean, var)).reshape(target.shape)

    @property
    def std(self) -> th.Tensor:
        """The running standard deviation, [D]"""
        return _std(self.running_mean, self.running_var)

    def denormalize(self, x: th.Tensor) -> th.Tensor:
        """:return: The inverse of :meth:`forward` by the running statistics, same shape"""
        return x * self.std + self.running_mean


def _std(mean: th.Tensor, var: th.Tensor) -> th.Tensor:
    return (var + (RELATIVE_EPS * mean).square() + EPS).sqrt()
