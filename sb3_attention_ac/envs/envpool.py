"""
EnvPool's environments (Weng et al. 2022, https://arxiv.org/abs/2206.10558) as SB3's ``VecEnv``: many steps at once in C++
threads. ``pip install '.[envpool]'``; for PPO and others as well::

    from stable_baselines3.common.vec_env import VecMonitor

    env = VecMonitor(EnvPoolVecEnv("CartPole-v1", n_envs=16, seed=0))
    model = AttentionActorCritic("MlpPolicy", env)
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_attention_ac.type_aliases import map_obs


def _make(env_id: str, **options: Any) -> Any:
    """:raises ImportError: If EnvPool is not installed"""
    try:
        envpool: Any = importlib.import_module("envpool")
    except ImportError as error:
        raise ImportError(f"EnvPoolVecEnv needs envpool ({error}): pip install '.[envpool]' in the checkout") from error
    return envpool.make(env_id, env_type="gymnasium", **options)


class EnvPoolVecEnv(VecEnv):
    """
    A pool that is stepped as a whole. EnvPool resets an environment at the step after its episode's end; here, as everywhere
    in SB3, the observation after that end is the first of the next episode, and the last one is in ``info``.

    :param env_id: EnvPool's name of the environment
    :param n_envs: Number of environments
    :param seed: Environment i has the seed ``seed + i``
    :param transform: Applied to the observations of all environments together, arrays [n_envs, ...]; None for nothing
    :param observation_space: What ``transform`` makes of EnvPool's; None for the same
    :param options: More arguments of ``envpool.make``, as ``num_threads`` or ``max_episode_steps``
    :raises ImportError: If EnvPool is not installed
    """

    def __init__(
        self,
        env_id: str,
        n_envs: int = 1,
        seed: int = 0,
        transform: Callable[[Any], Any] | None = None,
        observation_space: spaces.Space[Any] | None = None,
        **options: Any,
    ):
        self._arguments = {"env_id": env_id, "num_envs": n_envs, **options}
        self._transform = transform or (lambda obs: obs)
        self.render_mode = None
        self._seed: int | None = None
        self.pool = _make(seed=seed, **self._arguments)
        super().__init__(n_envs, observation_space or self.pool.observation_space, self.pool.action_space)
        self._actions: np.ndarray = np.zeros((n_envs, *(self.action_space.shape or ())), dtype=self.action_space.dtype)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        :param seed: Environment i has the seed ``seed + i`` from the next :meth:`reset` on
        :return: These seeds
        """
        self._seed = seed
        return [None if seed is None else seed + i for i in range(self.num_envs)]

    def reset(self) -> VecEnvObs:
        """:return: First observations of all environments"""
        if self._seed is not None:  # EnvPool takes a seed where a pool is made
            self.pool.close()
            self.pool, self._seed = _make(seed=self._seed, **self._arguments), None
        obs: VecEnvObs = self._transform(self.pool.reset()[0])
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        """:param actions: One for each environment"""
        self._actions = np.asarray(actions, dtype=self.action_space.dtype)

    def step_wait(self) -> VecEnvStepReturn:
        """:return: Observations, rewards, dones, infos"""
        obs, rewards, terminated, truncated, _ = self.pool.step(self._actions)
        obs, dones = self._transform(obs), terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        ended = np.flatnonzero(dones)
        if len(ended) > 0:
            for i in ended:
                infos[i]["terminal_observation"] = map_obs(lambda array, i=i: array[i].copy(), obs)
                infos[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
            first = self._transform(self.pool.reset(ended.astype(np.int32))[0])
            map_obs(lambda array, new: array.__setitem__(ended, new), obs, first)
        return obs, rewards, dones, infos

    def close(self) -> None:
        """Stop its threads."""
        self.pool.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """As in SB3; of the pool, the same for every environment"""
        value = self.render_mode if attr_name == "render_mode" else getattr(self.pool, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """:raises NotImplementedError: The environments are C++ objects"""
        raise NotImplementedError(
            f"An EnvPool environment has no attribute {attr_name!r} to set: pass options at construction."
        )

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """:raises NotImplementedError: The environments are C++ objects"""
        raise NotImplementedError("EnvPool's environments take no options in a reset: pass them at construction.")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """:raises NotImplementedError: The environments are C++ objects"""
        raise NotImplementedError(f"An EnvPool environment has no method {method_name!r} to call: use Gymnasium's.")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """:return: False for each: what wraps them is a ``VecEnvWrapper``"""
        return [False for _ in self._get_indices(indices)]


def minigrid_view(obs: dict[str, np.ndarray]) -> np.ndarray:
    """
    What :class:`~sb3_attention_ac.envs.minigrid.MiniGridView` shows, as ``transform`` of a pool of MiniGrid's environments.

    :param obs: EnvPool's observations, with an "image" of [n_envs, width, height, 3]
    :return: [n_envs, width * height * 3]
    """
    view: np.ndarray = obs["image"].reshape(len(obs["image"]), -1)
    return view
