"""SB3's and user-defined MLP extractors, as the policy's networks read them."""

from typing import Any

import torch as th
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import nn


class PartOfExtractor(nn.Module):
    """
    One of the MLPs of a user-defined MLP extractor, as a module.

    :param mlp_extractor: The MLP extractor
    :param method: Its method that is the MLP
    """

    def __init__(self, mlp_extractor: nn.Module, method: str):
        super().__init__()
        self.mlp_extractor, self.method = mlp_extractor, method

    def forward(self, features: th.Tensor) -> th.Tensor:
        latent: th.Tensor = getattr(self.mlp_extractor, self.method)(features)
        return latent


class SeparateMlps(nn.Module):
    """
    The actor's MLP of one MLP extractor and the critic's of another one.

    :param actor: Has ``forward_actor`` and ``latent_dim_pi``
    :param critic: Has ``forward_critic`` and ``latent_dim_vf``
    """

    def __init__(self, actor: Any, critic: Any):
        super().__init__()
        self.actor: Any = actor
        self.critic: Any = critic
        self.latent_dim_pi, self.latent_dim_vf = actor.latent_dim_pi, critic.latent_dim_vf

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        """:return: [N, latent_dim_pi]"""
        latent: th.Tensor = self.actor.forward_actor(features)
        return latent

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        """:return: [N, latent_dim_vf]"""
        latent: th.Tensor = self.critic.forward_critic(features)
        return latent


def with_actor(mlp_extractor: Any, actor: Any) -> Any:
    """:return: The MLP extractor with the MLP of another one for the actor"""
    if type(mlp_extractor) is not MlpExtractor:
        return SeparateMlps(actor, mlp_extractor)
    mlp_extractor.policy_net, mlp_extractor.latent_dim_pi = actor.policy_net, actor.latent_dim_pi
    return mlp_extractor


def as_module(mlp_extractor: nn.Module, name: str, method: str) -> nn.Module:
    """:return: An MLP as a module, also where it is a method of a user-defined extractor"""
    mlp_extractor = getattr(mlp_extractor, "_orig_mod", mlp_extractor)  # of torch.compile: it shows forward() alone
    if getattr(type(mlp_extractor), method) is getattr(MlpExtractor, method):
        mlp: nn.Module = getattr(mlp_extractor, name)
        return mlp
    return PartOfExtractor(mlp_extractor, method)
