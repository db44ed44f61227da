"""
MinAtar's games (Young & Tian 2019, https://arxiv.org/abs/1903.03176) for SB3: importing this registers MinAtar/Asterix-v1,
Breakout-v1, Freeway-v1, Seaquest-v1 and SpaceInvaders-v1 (v0: with all six actions), a wrapper makes images of channels x 10 x
10, and a network reads them. In RL Zoo's format, for any algorithm, with ``--gym-packages sb3_attention_ac.envs.minatar``::

    MinAtar/Breakout-v1:
      env_wrapper: sb3_attention_ac.envs.minatar.MinAtarImage
      policy: CnnPolicy
      policy_kwargs: "dict(features_extractor_class=importlib.import_module('sb3_attention_ac.envs.minatar').MinAtarCNN)"

It needs ``pip install minatar``. Sticky actions (one in ten) and difficulty ramping are on, as in the paper.
"""

import importlib
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

if "MinAtar/Breakout-v1" not in gym.registry:
    importlib.import_module("minatar.gym").register_envs()


class MinAtarImage(gym.ObservationWrapper[np.ndarray, Any, Any], gym.utils.RecordConstructorArgs):
    """
    MinAtar's image with its channels first and numbers instead of truth values: uint8 [channels, 10, 10], 0 or 1. SB3 leaves
    it as it is: its bounds are not those of a picture, so nothing is divided by 255 or transposed.

    :param env: One of MinAtar's games
    :raises ValueError: If the observation is not [height, width, channels] of truth values
    """

    def __init__(self, env: gym.Env[Any, Any]):
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 3 or space.dtype != np.bool_:
            raise ValueError(f"MinAtarImage needs MinAtar's observation, truth values of [10, 10, channels], not {space}.")
        height, width, n_channels = space.shape
        self.observation_space = spaces.Box(0, 1, (n_channels, height, width), dtype=np.uint8)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """
        :param observation: bool [height, width, channels]
        :return: uint8 [channels, height, width]
        """
        return observation.transpose(2, 0, 1).astype(np.uint8)


class MinAtarCNN(BaseFeaturesExtractor):
    """
    The network of MinAtar's paper: 16 filters of 3 x 3, one linear layer, ReLU after each. The paper has the heads right on
    it: add ``net_arch=[]`` to ``policy_kwargs``.

    :param observation_space: That of :class:`MinAtarImage`
    :param features_dim: Number of features
    :param n_filters: Number of filters
    :raises ValueError: If the observation is not [channels, height, width]
    """

    def __init__(self, observation_space: spaces.Space[Any], features_dim: int = 128, n_filters: int = 16):
        super().__init__(observation_space, features_dim)
        shape = observation_space.shape
        if shape is None or len(shape) != 3 or min(shape[1:]) < 3:
            raise ValueError(
                f"MinAtarCNN reads images of [channels, height, width], not {observation_space}: wrap the environment in "
                "MinAtarImage (env_wrapper in RL Zoo)."
            )
        self.cnn = nn.Sequential(
            nn.Conv2d(shape[0], n_filters, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(n_filters * (shape[1] - 2) * (shape[2] - 2), features_dim),
            nn.ReLU(),
        )

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: Images, 0 or 1 as floats, [batch, channels, height, width]
        :return: Features, [batch, features_dim]
        """
        features: th.Tensor = self.cnn(observations)
        return features
