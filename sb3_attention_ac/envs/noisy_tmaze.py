"""A T-maze with noise: bits that mean nothing beside a cue that is shown once."""

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_attention_ac.envs.base import Maze, draw_t
from sb3_attention_ac.validation import check_integers

UP, DOWN, LEFT, RIGHT = range(4)
_CUES = {UP: (0, 1, 1), DOWN: (1, 1, 0)}
_CORRIDOR, _JUNCTION = (1, 0, 1), (0, 1, 0)
_POSITION_BITS = 8


class NoisyTMaze(Maze):
    """
    The T-maze of Bakker 2001, "Reinforcement Learning with Long Short-Term Memory", with bits of noise as in AGaLiTe (Pramanik
    et al. 2024, https://arxiv.org/abs/2310.15719). In https://github.com/subho406/agalite it is ``BakkersTMazeWDistractors``;
    with ``show_position=True`` it is ``SimplerTMazeWDistractors``, the one of the published settings.

    - Observation: float32 of 0 and 1. Three bits, 011 or 110 in the first step (turn up or down), 101 in the corridor, 010 at
      the junction; then the noise, 0 in the first step, drawn anew in every later one. With ``show_position``: two bits, 01 or
      10 in the first step, 00 later; the position in eight bits of Gray code; then the noise.
    - Action: 0 up, 1 down, 2 left, 3 right. Up and down move only at the junction, left and right only before it.
    - Reward: 4 for the correct turn, -1 for the wrong one, -0.1 for any other step.
    - End: terminated by a turn at the junction; ``info["is_success"]`` then tells if it was the correct one. Truncated after
      ``max_steps``.
    - Return: ``4 - 0.1 * (corridor_length - 1)`` for remembering; 2.5 less on average for guessing.

    :param corridor_length: Number of cells, the junction among them, at least 2; at most 256 with ``show_position``. AGaLiTe's
        has 120 to 200
    :param n_noise: Number of bits of noise
    :param show_position: Show where the agent is
    :param max_steps: Steps until an episode is cut off
    :param render_mode: None or "rgb_array"
    :raises ValueError: If a parameter is out of its range
    """

    def __init__(
        self,
        corridor_length: int = 10,
        n_noise: int = 6,
        show_position: bool = False,
        max_steps: int = 1000,
        render_mode: str | None = None,
    ):
        super().__init__(render_mode)
        check_integers({"corridor_length": (corridor_length, 2), "n_noise": (n_noise, 0), "max_steps": (max_steps, 1)})
        if show_position and corridor_length > 2**_POSITION_BITS:
            raise ValueError(f"corridor_length={corridor_length}: must be at most {2**_POSITION_BITS} with show_position.")
        self.corridor_length, self.n_noise = corridor_length, n_noise
        self.show_position, self.max_steps = show_position, max_steps
        n_bits = (2 + _POSITION_BITS if show_position else 3) + n_noise
        self.observation_space = spaces.Box(0.0, 1.0, (n_bits,), dtype=np.float32)
        self.action_space = spaces.Discrete(4)
        self._goal, self._x = UP, 0

    def _observation(self) -> np.ndarray:
        first = self._t == 0
        bits: list[int] = []
        if self.show_position:
            gray = self._x ^ (self._x >> 1)
            bits += [first and self._goal == DOWN, first and self._goal == UP]
            bits += [gray >> place & 1 for place in reversed(range(_POSITION_BITS))]
        else:
            bits += _CUES[self._goal] if first else _JUNCTION if self._x == self.corridor_length - 1 else _CORRIDOR
        noise = np.zeros(self.n_noise) if first else self.np_random.integers(2, size=self.n_noise)
        return np.concatenate([bits, noise]).astype(np.float32)

    def _begin(self) -> None:
        self._goal = UP if self.np_random.integers(2) else DOWN
        self._x = 0

    def _move(self, action: int) -> tuple[float, bool, dict[str, Any]]:
        at_junction = self._x == self.corridor_length - 1
        terminated = at_junction and action in (UP, DOWN)
        success = terminated and action == self._goal
        reward = -0.1
        if terminated:
            reward = 4.0 if success else -1.0
        elif not at_junction:
            self._x = max(self._x + {LEFT: -1, RIGHT: 1}.get(action, 0), 0)
        return reward, terminated, {"is_success": success}

    def _picture(self) -> np.ndarray:
        return draw_t(self.corridor_length + 2, self.corridor_length, 1 if self._goal == UP else 3, (2, self._x + 1))
