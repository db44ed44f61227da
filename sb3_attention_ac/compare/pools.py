"""Training in EnvPool's environments: ``vec_env: envpool`` among the hyperparameters. Evaluations stay in Gymnasium's."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_attention_ac.compare.episodes import Episode
from sb3_attention_ac.compare.errors import CompareError
from sb3_attention_ac.envs.envpool import EnvPoolVecEnv, minigrid_view
from sb3_attention_ac.networks.distributions import forbids_actions

VEC_ENVS = ("gymnasium", "envpool")
MINIGRID_VIEW = "sb3_attention_ac.envs.minigrid.MiniGridView"


def check_vec_env(hyperparams: Mapping[str, Any], where: str) -> None:
    """
    A pool is EnvPool's own task: what an entry does to Gymnasium's environment would be done in evaluations alone.

    :param hyperparams: In the format of RL Zoo
    :param where: Variant and environment
    :raises CompareError: If ``vec_env`` is unknown, or the entry changes the environment
    """
    vec_env = hyperparams.get("vec_env", VEC_ENVS[0])
    if vec_env not in VEC_ENVS:
        raise CompareError(f"vec_env is {vec_env!r} for {where}; give one of {VEC_ENVS}.")
    for name in ("env_wrapper", "env_kwargs"):
        given = hyperparams.get(name)
        if vec_env == "envpool" and given and given not in (MINIGRID_VIEW, [MINIGRID_VIEW]):
            raise CompareError(
                f"vec_env is 'envpool' for {where}, which ignores {name}={given!r}: training would differ from evaluation. "
                f"Leave one of them out. The only wrapper that EnvPool's environments can have is {MINIGRID_VIEW}."
            )


class RecordedPool(EnvPoolVecEnv):
    """
    A pool that records its episodes, as :class:`~sb3_attention_ac.compare.episodes.EpisodeRecorder` those of an environment,
    and says where they ended, as ``Monitor`` does. No ``VecEnvWrapper``: the environments of evaluations have none either.

    :param env_id: As for :class:`~sb3_attention_ac.envs.envpool.EnvPoolVecEnv`
    :param options: Likewise
    """

    def __init__(self, env_id: str, **options: Any) -> None:
        super().__init__(env_id, **options)
        self.episodes = [Episode()]  # the last one is under way
        self._present = [Episode() for _ in range(self.num_envs)]
        self._start = time.time()

    def reset(self) -> VecEnvObs:
        """:return: First observations of all environments"""
        self._present = [Episode() for _ in range(self.num_envs)]
        return super().reset()

    def step_wait(self) -> VecEnvStepReturn:
        """:return: Observations, rewards, dones, infos"""
        obs, rewards, dones, infos = super().step_wait()
        for episode, reward in zip(self._present, rewards, strict=True):
            episode.add(reward)
        for i in np.flatnonzero(dones):
            ended, self._present[i] = self._present[i], Episode()
            self.episodes.insert(-1, ended)
            infos[i]["episode"] = ended.info(self._start)
        return obs, rewards, dones, infos


def make_pool(env_id: str, make_envs: Sequence[Callable[[], gym.Env[Any, Any]]], seed: int) -> RecordedPool:
    """
    :param env_id: Name of the environment, here and in EnvPool
    :param make_envs: Make Gymnasium's, with the wrappers of the user; there are as many in the pool
    :param seed: Environment i has the seed ``seed + i``
    :return: A pool whose spaces are those of Gymnasium's environment
    :raises CompareError: If EnvPool is not installed, does not have it, shows something else, or there are action masks
    """
    example = make_envs[0]()
    space, action_space = example.observation_space, example.action_space
    has_masks = forbids_actions(example)
    example.close()
    if has_masks:
        raise CompareError(f"vec_env is 'envpool', but {env_id} has action masks, which no pool has: leave vec_env out.")
    options: dict[str, Any] = {"n_envs": len(make_envs), "seed": seed, "num_threads": 1}
    try:
        pool = RecordedPool(env_id, **options)
    except (ImportError, AssertionError) as error:
        raise CompareError(f"vec_env is 'envpool', but EnvPool cannot make {env_id}: {error}. Leave vec_env out.") from error
    parts = getattr(pool.observation_space, "spaces", {})
    if "image" in parts and space.shape == (math.prod(parts["image"].shape),):
        pool.close()
        pool = RecordedPool(env_id, transform=minigrid_view, observation_space=space, **options)
    if (pool.observation_space, pool.action_space) != (space, action_space):
        pool.close()
        raise CompareError(
            f"vec_env is 'envpool', but its {env_id} has other spaces than Gymnasium's with the wrappers of this entry: "
            f"observations {pool.observation_space} and {space}, actions {pool.action_space} and {action_space}. "
            "Leave vec_env out."
        )
    return pool
