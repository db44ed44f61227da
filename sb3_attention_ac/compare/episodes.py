"""What the environment itself lived through, whatever the wrappers around it make of it."""

import time
from dataclasses import dataclass
from typing import Any, SupportsFloat

import gymnasium as gym
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv
from stable_baselines3.common.env_util import is_wrapped


@dataclass
class Episode:
    """
    :param total: Sum of the rewards so far
    :param length: Number of steps so far
    """

    total: float = 0.0
    length: int = 0

    def add(self, reward: SupportsFloat) -> None:
        """:param reward: Of one more step"""
        self.total += float(reward)
        self.length += 1

    def info(self, start: float) -> dict[str, float]:
        """
        :param start: When its environment was made
        :return: What ``Monitor`` says of an episode that has ended
        """
        return {"r": round(self.total, 6), "l": self.length, "t": round(time.time() - start, 6)}


class EpisodeRecorder(gym.Wrapper[Any, Any, Any, Any]):
    """
    Records raw episodes. It belongs inside the wrappers of the user, like ``Monitor``, but sees where they cut an episode off
    (``TimeLimit``): by the reset that follows. A lost life, which ends an episode for the agent alone, resets nothing, and so
    ends nothing here.

    :param env: The environment, without the wrappers of the user
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.episodes: list[Episode] = []  # the last one is under way

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """
        Begin the next episode.

        :param kwargs: For the environment
        :return: Its first observation, and what it says beside it
        """
        self.episodes.append(Episode())
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: For the environment
        :return: What it returns
        """
        step = self.env.step(action)
        if not self.episodes:  # a wrapper has its own way to begin
            self.episodes.append(Episode())
        self.episodes[-1].add(step[1])
        return step


class EndReporter(gym.Wrapper[Any, Any, Any, Any]):
    """
    Says that an episode has ended where ``Monitor`` cannot. Without it SB3's ``evaluate_policy``, by which ARS trains, waits
    for ever for the end of an episode that a wrapper cuts off.

    :param env: The environment with the wrappers of the user
    :param episodes: What its :class:`EpisodeRecorder` records
    """

    def __init__(self, env: gym.Env[Any, Any], episodes: list[Episode]) -> None:
        super().__init__(env)
        self.episodes = episodes
        self.has_lives = is_wrapped(env, EpisodicLifeEnv)
        self.start = time.time()

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: For the environment
        :return: What it returns
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        if (truncated or (terminated and not self.has_lives)) and "episode" not in info:
            info = {**info, "episode": self.episodes[-1].info(self.start)}
        return observation, reward, terminated, truncated, info


def take_finished(episodes: list[Episode]) -> list[Episode]:
    """
    :param episodes: Those of an :class:`EpisodeRecorder`; what has ended is taken out
    :return: Those that have ended
    """
    finished = [episode for episode in episodes[:-1] if episode.length]
    del episodes[:-1]
    return finished
