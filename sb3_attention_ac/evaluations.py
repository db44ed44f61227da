"""What the networks make of windows of trajectories, and what actor and critic say of them."""

from typing import NamedTuple

import torch as th

from sb3_attention_ac.trunk import TrunkOutput


class WindowLatents(NamedTuple):
    """
    What the networks make of the last n steps of N windows of W steps.

    :param actor: The memory actor's, [N, n, latent_dim_pi]; None for an MLP actor
    :param critic: The critic's, [N, n, latent_dim_vf]
    :param features: Features of every step, as the trunk that acts has them: the memory actor's, else the critic's, [N, W, F]
    """

    actor: TrunkOutput | None
    critic: TrunkOutput
    features: th.Tensor

    @property
    def remembered(self) -> "Remembered":
        """What the trunk that acts knows of the last n steps"""
        return Remembered((self.actor or self.critic).gathered, self.features)


class Remembered(NamedTuple):
    """
    What a trunk knows of the last n steps of N windows of W steps, before its MLP makes an action or a value of it.

    :param gathered: What its encoder gathered, [N, n, gathered_dim]; None for a trunk without attention
    :param features: Features of every step, [N, W, F]
    """

    gathered: th.Tensor | None
    features: th.Tensor


class ActorEvaluation(NamedTuple):
    """
    What a memory actor says of the last n steps of N windows.

    :param log_prob: log pi(a_t | s_t), [N, n]
    :param entropy: Entropy of the action distributions, [N, n]; None if it has no analytical form
    :param remembered: What these were made from
    """

    log_prob: th.Tensor
    entropy: th.Tensor | None
    remembered: Remembered


class WindowEvaluation(NamedTuple):
    """
    What actor and critic say of the last n steps of N windows. An MLP actor is evaluated on single transitions instead.

    :param values: V(h_t), [N, n]
    :param latents: What these were read from
    :param added: What attention would add to V_mlp(s_t) with a share of one, [N, n]; None if the value is one (memory actor)
    :param action_advantages: A_att(h_t, a_t), [N, n]; None without ``attention_q``
    :param log_prob: log pi(a_t | s_t), [N, n]; None for an MLP actor
    :param entropy: Entropy of the action distributions, [N, n]; None for an MLP actor, or if it has no analytical form
    """

    values: th.Tensor
    latents: WindowLatents
    added: th.Tensor | None = None
    action_advantages: th.Tensor | None = None
    log_prob: th.Tensor | None = None
    entropy: th.Tensor | None = None
