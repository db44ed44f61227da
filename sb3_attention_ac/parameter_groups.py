"""The parameters of MLPs and attention as groups of one optimizer, each with its own learning rate."""

from typing import TYPE_CHECKING, Any

import torch as th

if TYPE_CHECKING:
    from sb3_attention_ac.trajectory_policy import TrajectoryPolicy


def mlps_and_attention(policy: "TrajectoryPolicy") -> list[dict[str, Any]]:
    """
    :param policy: A policy with an MLP actor
    :return: The parameters that PPO has too, and those that learn from windows
    """
    modules: list[Any] = [policy.critic_trunk, policy.auxiliary, policy.live, policy.attention_q]
    attention = [parameter for module in modules if module is not None for parameter in module.parameters()]
    others = set(policy.parameters()) - set(attention)
    return [{"params": [parameter for parameter in policy.parameters() if parameter in others]}, {"params": attention}]


def scale_attention_learning_rate(optimizer: th.optim.Optimizer, factor: float) -> None:
    """
    :param optimizer: Of the groups of :func:`mlps_and_attention`, all with one learning rate. One that has been put in its
        place and has other groups is left alone
    :param factor: The attention's learning rate over the MLPs'
    """
    if len(optimizer.param_groups) == 2:
        optimizer.param_groups[1]["lr"] *= factor
