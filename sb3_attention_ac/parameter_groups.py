"""The parameters of actor and critic as groups of one optimizer, each with its own learning rate."""

from typing import TYPE_CHECKING, Any

import torch as th

if TYPE_CHECKING:
    from sb3_attention_ac.trajectory_policy import TrajectoryPolicy


def actor_and_critic(policy: "TrajectoryPolicy") -> list[dict[str, Any]]:
    """
    :param policy: A policy with an MLP actor
    :return: The parameters of the actor (and of a shared features extractor), and those of the critic
    """
    modules: list[Any] = [policy.critic_trunk, policy.mlp_extractor.value_net, policy.value_net, policy.auxiliary]
    modules += [policy.live, policy.attention_q]
    if not policy.share_features_extractor:
        modules.append(policy.vf_features_extractor)
    critic = [parameter for module in modules if module is not None for parameter in module.parameters()]
    critics = set(critic)
    return [{"params": [parameter for parameter in policy.parameters() if parameter not in critics]}, {"params": critic}]


def scale_critic_learning_rate(optimizer: th.optim.Optimizer, factor: float) -> None:
    """
    :param optimizer: Of the groups of :func:`actor_and_critic`, all with the actor's learning rate
    :param factor: The critic's learning rate over the actor's
    """
    optimizer.param_groups[1]["lr"] *= factor
