"""A key that tells nothing, for a critic that should lose nothing by it."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class NoiseKey(gym.ObservationWrapper[Any, Any, Any]):
    """
    Puts standard normal noise beside the observation, drawn anew in each step.

    :param env: An environment with Dict observations
    :param size: How many numbers
    """

    def __init__(self, env: gym.Env[Any, Any], size: int = 8):
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Dict)
        noise = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.observation_space = spaces.Dict({**env.observation_space.spaces, "noise": noise})
        self._size = size
        self._generator = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """:return: As the environment, whose own random numbers stay the same"""
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        return super().reset(seed=seed, options=options)

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """:return: Observation and noise"""
        return {**observation, "noise": self._generator.standard_normal(self._size, np.float32)}
