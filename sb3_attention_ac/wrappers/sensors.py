"""Sensors that fail now and then, and sensors that are not there at all."""

from collections.abc import Sequence
from typing import Any, Literal, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_attention_ac.wrappers.randomness import OwnGenerator


def _box(env: gym.Env[Any, Any], wrapper: str) -> spaces.Box:
    """
    :return: The observation space
    :raises ValueError: If observations are not vectors
    """
    space = env.observation_space
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"{wrapper} needs a vector as observation (a Box with one dimension), not {space}.")
    return space


class FailingSensors(OwnGenerator, gym.Wrapper[np.ndarray, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """
    Sensors that fail for a while, alone or with their group, as in Vogt-Lowell et al. 2026, "When Sensors Fail: Temporal
    Sequence Models for Robust PPO under Sensor Drift" (https://arxiv.org/abs/2603.04648). Each entry of the observation is a
    sensor with a Markov chain of its own, up or down; so is each group. A sensor is read if both are up.

    The defaults are the paper's: a sensor that is up goes down with probability 0.01 in each step, one that is down comes back
    with 0.9; a group goes down with 0.55 and comes back with 0.9. In the long run a sensor is read in 0.989 * 0.621 = 61 % of
    the steps. Chains start as they are in the long run. How to cut an observation into groups is not said there: here they are
    equal blocks of neighbouring entries, if you do not give them.

    :param env: An environment whose observations are vectors
    :param fail: Probability that a sensor goes down in a step, 0 to 1
    :param recover: Probability that a sensor that is down comes back in a step, above 0
    :param group_fail: The same for a group
    :param group_recover: The same for a group
    :param groups: Number of blocks, 0 for none; or the indices of each group's entries, none of them in two groups. None: 4
        blocks, or one for each entry if there are fewer
    :param failed: What is read instead: "zero"; or "hold", the last value that was read in this episode, zero before the first
    :param show_mask: Append to the observation which sensors were read, 1 or 0 each
    :raises ValueError: If observations are not vectors or a parameter is out of its range
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        fail: float = 0.01,
        recover: float = 0.9,
        group_fail: float = 0.55,
        group_recover: float = 0.9,
        groups: int | Sequence[Sequence[int]] | None = None,
        failed: Literal["zero", "hold"] = "zero",
        show_mask: bool = False,
    ):
        gym.utils.RecordConstructorArgs.__init__(
            self,
            fail=fail,
            recover=recover,
            group_fail=group_fail,
            group_recover=group_recover,
            groups=groups,
            failed=failed,
            show_mask=show_mask,
        )
        gym.Wrapper.__init__(self, env)
        space = _box(env, "FailingSensors")
        for name, value in (("fail", fail), ("group_fail", group_fail)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} was given, but it must be from 0 to 1.")
        for name, value in (("recover", recover), ("group_recover", group_recover)):
            if not 0 < value <= 1:
                raise ValueError(f"{name}={value}: must be above 0 and at most 1, or what fails would never come back.")
        if failed not in ("zero", "hold"):
            raise ValueError(f"failed={failed!r} was given, but it must be 'zero' or 'hold'.")
        self.n_sensors = space.shape[0]
        self.groups = self._make_groups(groups)
        # Sensors first, groups behind them: one draw for all chains. Entries without a group have a last one, always up
        n_groups = len(self.groups)
        self._fail = np.repeat([fail, group_fail], [self.n_sensors, n_groups])
        self._recover = np.repeat([recover, group_recover], [self.n_sensors, n_groups])
        self._group_of = np.full(self.n_sensors, n_groups)
        for i, group in enumerate(self.groups):
            self._group_of[group] = i
        self.failed, self.show_mask = failed, show_mask
        self.available = np.ones(self.n_sensors, dtype=bool)
        self._up = np.ones(len(self._fail), dtype=bool)

        low, high = np.minimum(space.low, 0), np.maximum(space.high, 0)
        if show_mask:
            low, high = np.append(low, np.zeros(self.n_sensors)), np.append(high, np.ones(self.n_sensors))
        self._dtype: Any = space.dtype
        self._held = np.zeros(self.n_sensors, dtype=self._dtype)
        self.observation_space = spaces.Box(low.astype(self._dtype), high.astype(self._dtype), dtype=self._dtype)

    def _make_groups(self, groups: int | Sequence[Sequence[int]] | None) -> list[np.ndarray]:
        """
        :return: Indices of each group
        :raises ValueError: If there are more groups than sensors, or an index is out of range or in two groups
        """
        if groups is None:
            groups = min(4, self.n_sensors)
        if isinstance(groups, (int, np.integer)):
            if not 0 <= groups <= self.n_sensors:
                raise ValueError(f"groups={groups}: use 0 to one per entry; the observation has {self.n_sensors} entries.")
            return np.array_split(np.arange(self.n_sensors), groups) if groups else []
        indices = [np.array(group, dtype=int) for group in groups]
        together = np.concatenate(indices) if indices else np.zeros(0, dtype=int)
        if len(np.unique(together)) != len(together) or not np.isin(together, np.arange(self.n_sensors)).all():
            raise ValueError(f"groups={groups}: indices go from 0 to {self.n_sensors - 1}, and each is in one group at most.")
        return indices

    def _observe(self, obs: np.ndarray) -> np.ndarray:
        up = np.append(self._up[self.n_sensors :], True)  # of groups
        self.available = self._up[: self.n_sensors] & up[self._group_of]
        seen = np.where(self.available, obs, self._held).astype(self._dtype)
        if self.failed == "hold":
            self._held = seen.copy()  # the caller may write into what is returned
        return np.append(seen, self.available.astype(self._dtype)) if self.show_mask else seen

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        :param seed: Seed of this and all following episodes, failures included
        :param options: Options of the environment
        :return: The first observation as far as it is read, and the environment's information
        """
        self.seed_generator(seed)
        obs, info = self.env.reset(seed=seed, options=options)
        in_the_long_run = self._recover / (self._fail + self._recover)
        self._up = self.generator.random(len(self._fail)) < in_the_long_run
        self._held = np.zeros(self.n_sensors, dtype=self._dtype)
        return self._observe(obs), info

    def step(self, action: Any) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: The action
        :return: The observation as far as it is read, and what else the environment returned
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        draws = self.generator.random(len(self._fail))
        self._up = np.where(self._up, draws >= self._fail, draws < self._recover)
        return self._observe(obs), reward, terminated, truncated, info


class _Part(gym.ObservationWrapper[np.ndarray, Any, Any], gym.utils.RecordConstructorArgs):
    """
    A part of what a MuJoCo task of Gymnasium shows.

    :param env: A MuJoCo task of version 5, e.g. Hopper-v5, before any wrapper that changes its observation
    :param part: "qpos" or "qvel"
    :raises ValueError: If the environment does not say what its observation is made of
    """

    def __init__(self, env: gym.Env[Any, Any], part: Literal["qpos", "qvel"]):
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        name = type(self).__name__
        space = _box(env, name)
        structure: dict[str, int] | None = getattr(env.unwrapped, "observation_structure", None)
        sizes = {key: size for key, size in (structure or {}).items() if key != "skipped_qpos"}
        if part not in sizes or sum(sizes.values()) != space.shape[0]:
            raise ValueError(
                f"{name} needs a MuJoCo task of Gymnasium that describes its observation's structure (Hopper-v5, "
                f"Walker2d-v5, HalfCheetah-v5 and Ant-v5 do), before other wrappers; {env} does not."
            )
        start = 0 if part == "qpos" else sizes["qpos"]
        self._part = slice(start, start + sizes[part])
        dtype: Any = space.dtype
        self.observation_space = spaces.Box(space.low[self._part], space.high[self._part], dtype=dtype)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """
        :param observation: The environment's
        :return: The part
        """
        return observation[self._part]


class PositionOnly(_Part):
    """
    Positions and angles only, as the "-P" tasks of the literature (e.g. POBAX, https://arxiv.org/abs/2508.00046): velocities
    and contact forces are hidden. Entries 0 to 4 of Hopper-v5, 0 to 7 of Walker2d-v5 and HalfCheetah-v5, 0 to 12 of Ant-v5. As
    in the full observation, x (and y of Ant) is left out.

    :param env: A MuJoCo task of version 5, before any wrapper that changes its observation
    :raises ValueError: If the environment does not say what its observation is made of
    """

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(env, "qpos")


class VelocityOnly(_Part):
    """
    Velocities only, as the "-V" tasks of the literature: entries 5 to 10 of Hopper-v5, 8 to 16 of Walker2d-v5 and
    HalfCheetah-v5, 13 to 26 of Ant-v5.

    :param env: A MuJoCo task of version 5, before any wrapper that changes its observation
    :raises ValueError: If the environment does not say what its observation is made of
    """

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(env, "qvel")
