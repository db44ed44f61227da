"""SB3's features and MLP extractors, as the policy's networks read them."""

import torch as th
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import nn


class PartOfExtractor(nn.Module):
    """
    One of the MLPs of an MLP extractor of one's own, as a module.

    :param mlp_extractor: The MLP extractor
    :param method: Its method that is the MLP
    """

    def __init__(self, mlp_extractor: nn.Module, method: str):
        super().__init__()
        self.mlp_extractor, self.method = mlp_extractor, method

    def forward(self, features: th.Tensor) -> th.Tensor:
        latent: th.Tensor = getattr(self.mlp_extractor, self.method)(features)
        return latent


def as_module(mlp_extractor: nn.Module, name: str, method: str) -> nn.Module:
    """:return: An MLP as a module, also where it is a method of one's own"""
    if getattr(type(mlp_extractor), method) is getattr(MlpExtractor, method):
        mlp: nn.Module = getattr(mlp_extractor, name)
        return mlp
    return PartOfExtractor(mlp_extractor, method)
