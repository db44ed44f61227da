"""
Wrappers that show the agent what it did last and what it got for it.

A memory actor reads its previous actions by itself, but no rewards: ``predict()`` is not given any. In tasks where the reward
reveals the task (bandits, meta-reinforcement learning: Wang et al. 2016, https://arxiv.org/abs/1611.05763, and Duan et
al. 2016, https://arxiv.org/abs/1611.02779), the reward has to be part of the observation. These wrappers put it there, so that
training, ``predict()`` and any other algorithm see the same.
"""

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_attention_ac.networks.preprocessing import PREVIOUS_ACTION, PREVIOUS_REWARD

OBSERVATION = "observation"


class _Extension:
    """
    How observations are extended.

    :param observation_space: Any observation space of SB3
    :param action_space: Box, Discrete, MultiDiscrete or MultiBinary
    :raises ValueError: If there are such entries already
    """

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]):
        self.is_dict = isinstance(observation_space, spaces.Dict)
        entries = dict(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else {}
        taken = {PREVIOUS_ACTION, PREVIOUS_REWARD} & set(entries)
        if taken:
            raise ValueError(
                f"The observation has the entries {sorted(taken)} already: wrap an environment only once, or rename them."
            )
        self.action_space = action_space
        self.no_action = np.zeros(spaces.flatdim(action_space), dtype=np.float32)
        entries = entries or {OBSERVATION: observation_space}
        entries[PREVIOUS_ACTION] = spaces.Box(-np.inf, np.inf, self.no_action.shape, dtype=np.float32)
        entries[PREVIOUS_REWARD] = spaces.Box(-np.inf, np.inf, (1,), dtype=np.float32)
        self.observation_space = spaces.Dict(entries)

    def encode(self, action: Any) -> np.ndarray:
        """:return: One-hot for discrete actions, else as it is, [flatdim]"""
        return np.asarray(spaces.flatten(self.action_space, action), dtype=np.float32)

    def extend(self, obs: Any, previous_action: np.ndarray, previous_reward: np.ndarray) -> dict[str, Any]:
        """:return: The observation as a dictionary, with the two entries"""
        entries = dict(obs) if self.is_dict else {OBSERVATION: obs}
        return {**entries, PREVIOUS_ACTION: previous_action, PREVIOUS_REWARD: previous_reward}


def from_zero(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """
    :param space: An action space
    :return: The same, but a discrete one begins at 0
    """
    if isinstance(space, spaces.Discrete) and space.start != 0:
        return spaces.Discrete(space.n)
    if isinstance(space, spaces.MultiDiscrete) and np.any(space.start):
        return spaces.MultiDiscrete(space.nvec)
    return space


class PreviousActionReward(gym.Wrapper[dict[str, Any], Any, Any, Any], gym.utils.RecordConstructorArgs):
    """
    Adds the last action (one-hot if discrete) and the last reward to the observation, zeros at the start of an episode. The
    observation becomes a Dict with ``observation`` (or the entries it had), ``previous_action`` and ``previous_reward``: use
    ``MultiInputPolicy``.

    :param env: The environment
    :raises ValueError: If it has such entries already
    """

    def __init__(self, env: gym.Env[Any, Any]):
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._extension = _Extension(env.observation_space, env.action_space)
        self.observation_space = self._extension.observation_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        :param seed: Seed of the episode
        :param options: Options of the environment
        :return: The first observation and its information
        """
        obs, info = self.env.reset(seed=seed, options=options)
        nothing = self._extension.no_action.copy(), np.zeros(1, dtype=np.float32)
        return self._extension.extend(obs, *nothing), info

    def step(self, action: Any) -> tuple[dict[str, Any], SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: The action
        :return: The observation with this action and its reward, and what else the environment returned
        """
        previous_action = self._extension.encode(action)  # before the environment can change the array
        obs, reward, terminated, truncated, info = self.env.step(action)
        previous_reward = np.asarray(reward, dtype=np.float32).reshape(1)
        return self._extension.extend(obs, previous_action, previous_reward), reward, terminated, truncated, info


class VecPreviousActionReward(VecEnvWrapper):
    """
    :class:`PreviousActionReward` for a vectorized environment. The reward is the one this wrapper receives: put it below
    ``VecNormalize`` to show the reward as the environment gave it. A discrete action space that has a start begins at 0 here,
    as algorithms number actions; the environments get theirs.

    :param venv: The vectorized environment
    :raises ValueError: If it has such entries already
    """

    def __init__(self, venv: VecEnv):
        action_space = from_zero(venv.action_space)
        self._extension = _Extension(venv.observation_space, action_space)
        self._actions = np.zeros((venv.num_envs, *self._extension.no_action.shape), dtype=np.float32)
        super().__init__(venv, self._extension.observation_space, action_space)

    def reset(self) -> Any:
        """:return: The first observations of all environments"""
        no_rewards = np.zeros((self.num_envs, 1), dtype=np.float32)
        return self._extension.extend(self.venv.reset(), np.zeros_like(self._actions), no_rewards)

    def step_async(self, actions: np.ndarray) -> None:
        """:param actions: One for each environment"""
        self._actions = np.stack([self._extension.encode(action) for action in actions])
        start = getattr(self.venv.action_space, "start", 0)
        self.venv.step_async(actions + start if np.any(start) else actions)

    def step_wait(self) -> VecEnvStepReturn:
        """:return: The observations with these actions and their rewards, rewards, dones and infos"""
        obs, rewards, dones, infos = self.venv.step_wait()
        actions, previous_rewards = self._actions.copy(), rewards.astype(np.float32).reshape(-1, 1)
        for env in np.flatnonzero(dones):
            if "terminal_observation" in infos[env]:
                last = self._extension.extend(
                    infos[env]["terminal_observation"], actions[env].copy(), previous_rewards[env].copy()
                )
                infos[env]["terminal_observation"] = last
        actions[dones], previous_rewards[dones] = 0, 0  # the observation of these starts a new episode
        return self._extension.extend(obs, actions, previous_rewards), rewards, dones, infos
