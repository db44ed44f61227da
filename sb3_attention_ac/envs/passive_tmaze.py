"""The passive T-maze: a cue at the first step says which way to turn at the end of a corridor."""

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_attention_ac.envs.base import Maze, draw_t
from sb3_attention_ac.validation import check_integers

RIGHT, UP, LEFT, DOWN = range(4)
_MOVES = {RIGHT: (1, 0), UP: (0, 1), LEFT: (-1, 0), DOWN: (0, -1)}


class PassiveTMaze(Maze):
    """
    The passive T-maze of Ni et al. 2023, "When Do Transformers Shine in RL? Decoupling Memory from Credit Assignment"
    (https://arxiv.org/abs/2307.03864), as ``TMazeClassicPassive`` in https://github.com/twni2016/Memory-RL has it::

                        G      y = 1
        S---------------J      y = 0
                        G      y = -1
        x = 0           x = corridor_length

    The agent starts at S and is shown there, and only in the first step, at which G the goal is. An episode has
    ``corridor_length + 1`` steps, just enough to go straight to J and turn: so every step counts, and the cue has to be
    remembered for ``corridor_length`` steps.

    - Observation: float32 [2]. In the first step (0, goal's y); in the corridor (0, 0), also on coming back to S; at J and
      at the two G (1, y).
    - Action: 0 right, 1 up, 2 left, 3 down. A move into a wall does nothing.
    - Reward: after step t, ``penalty`` if x < t (the agent has fallen behind), else 0. After the last step ``goal_reward``
      at the goal, else 0, with no penalty. The default penalty adds up to -1 over an episode, so that going forward is
      learned at once and what is left is the memory.
    - Return: 1 for remembering, 0.5 on average for going forward and guessing, -1 for standing still.
    - End: terminated after ``corridor_length + 1`` steps; ``info["is_success"]`` then tells if the goal was reached.

    :param corridor_length: Steps from the cue to the junction, at least 1
    :param penalty: Reward of a step after which the agent is behind, at most 0; None: ``-1 / corridor_length``
    :param goal_reward: Reward for the goal
    :param render_mode: None or "rgb_array"
    :raises ValueError: If a parameter is out of its range
    """

    def __init__(
        self,
        corridor_length: int = 10,
        penalty: float | None = None,
        goal_reward: float = 1.0,
        render_mode: str | None = None,
    ):
        super().__init__(render_mode)
        check_integers({"corridor_length": (corridor_length, 1)})
        if penalty is not None and not penalty <= 0:
            raise ValueError(f"penalty={penalty}: it is added to the reward as it is, so it has to be 0 or negative.")
        self.corridor_length, self.max_steps = corridor_length, corridor_length + 1
        self.penalty = -1.0 / corridor_length if penalty is None else penalty
        self.goal_reward = goal_reward
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)
        self.action_space = spaces.Discrete(4)
        self._goal = self._x = self._y = 0

    def _begin(self) -> None:
        self._x = self._y = 0
        self._goal = 1 if self.np_random.integers(2) else -1

    def _move(self, action: int) -> tuple[float, bool, dict[str, Any]]:
        dx, dy = _MOVES[action]
        at_junction = self._x == self.corridor_length
        if self._y == 0 and 0 <= self._x + dx <= self.corridor_length:
            self._x += dx
        if at_junction and abs(self._y + dy) <= 1:
            self._y += dy
        success = self._y == self._goal
        if self._t == self.max_steps:
            return self.goal_reward * success, True, {"is_success": success}
        return self.penalty if self._x < self._t else 0.0, False, {}

    def _observation(self) -> np.ndarray:
        if self._t == 0:
            return np.array([0, self._goal], dtype=np.float32)
        return np.array([0, 0] if self._x < self.corridor_length else [1, self._y], dtype=np.float32)

    def _picture(self) -> np.ndarray:
        return draw_t(self.corridor_length + 3, self.corridor_length + 1, 2 - self._goal, (2 - self._y, self._x + 1))
