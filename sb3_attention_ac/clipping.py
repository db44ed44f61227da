"""Clipping gradients."""

from collections.abc import Iterable

import torch as th


def clip_gradients(parameters: Iterable[th.Tensor], max_norm: float) -> th.Tensor:
    """
    Scale gradients so that the norm of all of them together is at most ``max_norm``, in place. Does what
    ``th.nn.utils.clip_grad_norm_`` does; one norm of the gradients side by side takes less than half the time of one for each.

    :param parameters: Parameters; those without a gradient are left out
    :param max_norm: The largest norm allowed
    :return: The norm before, a scalar; where it is not finite the gradients are of no use
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm: th.Tensor = th.cat([gradient.flatten() for gradient in gradients]).norm()
    if norm > max_norm:
        th._foreach_mul_(gradients, max_norm / (norm + 1e-6))  # a tensor: a number would be made one for each gradient
    return norm
