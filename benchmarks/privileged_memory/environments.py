"""Memory tasks whose critic is told what the actor has to remember, registered on import."""

from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
import popgym  # noqa: F401  (registers its environments)
from gymnasium import spaces

import sb3_attention_ac.envs  # noqa: F401  (registers the T-mazes)

STEPS_BACK = 31  # what RepeatPreviousMedium asks for


class TellsCue(gym.ObservationWrapper[Any, Any, Any]):
    """Endless T-maze: the cue of the present corridor beside the observation, which shows it in its first cell only."""

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(env)
        assert env.observation_space.shape is not None
        cue = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.observation_space = spaces.Dict(observation=env.observation_space, privileged=cue)
        self._cue = np.zeros(2, np.float32)

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        """:return: Observation and cue"""
        if observation[1:].any():
            self._cue = observation[1:].copy()
        return {"observation": observation, "privileged": self._cue.copy()}


class TellsAnswer(gym.ObservationWrapper[Any, Any, Any]):
    """RepeatPrevious: the card that is asked for beside the present one, one-hot; nothing while there is none."""

    def __init__(self, env: gym.Env[Any, Any], steps_back: int = STEPS_BACK):
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Discrete)
        self._cards = np.eye(int(env.observation_space.n), dtype=np.float32)
        card = spaces.Box(0.0, 1.0, (len(self._cards),), np.float32)
        self.observation_space = spaces.Dict(observation=card, privileged=card)
        self._seen: deque[np.ndarray] = deque(maxlen=steps_back + 1)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """:return: As the environment, with an empty past"""
        self._seen.clear()
        return super().reset(**kwargs)

    def observation(self, observation: Any) -> dict[str, np.ndarray]:
        """:return: The present card, and the one that is asked for"""
        self._seen.append(self._cards[int(observation)])
        asked_for = self._seen[0] if len(self._seen) == self._seen.maxlen else np.zeros_like(self._cards[0])
        return {"observation": self._seen[-1].copy(), "privileged": asked_for.copy()}


gym.register("ToldEndlessTMaze5-v0", lambda **_: TellsCue(gym.make("EndlessTMaze5-v0")))
gym.register("ToldRepeatPreviousMedium-v0", lambda **_: TellsAnswer(gym.make("popgym-RepeatPreviousMedium-v0")))
