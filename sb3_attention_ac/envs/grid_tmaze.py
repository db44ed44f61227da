"""A T-maze on a grid, seen through a small window in front of the agent."""

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_attention_ac.envs import base
from sb3_attention_ac.validation import check_integers

FORWARD, TURN_RIGHT, TURN_LEFT = range(3)
TILES = ("unseen", "green floor", "blue floor", "wall", "floor")
_PICTURE = np.array([base.UNSEEN, base.GREEN, base.BLUE, base.WALL, base.FLOOR])
_UNSEEN, _GREEN, _BLUE, _WALL, _FLOOR = range(5)
_DIRECTIONS = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])  # up, right, down, left, as (row, column)


class GridTMaze(base.Maze):
    """
    The T-maze of Eberhard et al. 2025, "Partially Observable Reinforcement Learning with Memory Traces" (ICML;
    https://arxiv.org/abs/2503.15200), as ``TMaze`` in https://github.com/onnoeberhard/memory-traces has it (an
    environment of XLand-MiniGrid)::

        ################
        ##############?#     one of the ? is green, the other one blue
        #C             #
        ##############?#
        ################

    The agent starts on the coloured cell C, looking down the corridor, and has to step on the ? of the same colour. Which
    colour C has and which ? is green is drawn in each episode. C is seen in the first step and again only on going back.

    - Observation: float32 [9 * 5], one-hot over :data:`TILES` of the 3 x 3 cells in front of the agent, row by row, farthest
      row first. The agent is in the middle of the last row; walls do not hide anything.
    - Action: 0 forward, 1 turn right, 2 turn left. A step into a wall does nothing.
    - Reward: 1 on the ? of the matching colour, else 0.
    - End: terminated on either ?; truncated after ``5 * (corridor_length + 2) ** 2`` steps, as MiniGrid's memory task is.
      ``info["is_success"]`` then tells if the colour was the matching one.
    - Random actions need thousands of steps for one episode: with a corridor of 64 this tests exploration too.

    :param corridor_length: Number of cells of the corridor, C and the junction among them, at least 4; the source has 8 to
        1024, and 64 in its example
    :param max_steps: Steps until an episode is cut off; None: as above
    :param render_mode: None or "rgb_array"
    :raises ValueError: If a parameter is out of its range
    """

    def __init__(self, corridor_length: int = 64, max_steps: int | None = None, render_mode: str | None = None):
        super().__init__(render_mode)
        check_integers({"corridor_length": (corridor_length, 1)})
        if corridor_length < 4:
            raise ValueError(
                f"corridor_length={corridor_length} was given, but it must be at least 4: otherwise the cue is seen from the "
                "junction."
            )
        self.corridor_length = corridor_length
        self.max_steps = 5 * (corridor_length + 2) ** 2 if max_steps is None else max_steps
        check_integers({"max_steps": (self.max_steps, 1)})
        self.observation_space = spaces.Box(0.0, 1.0, (9 * len(TILES),), dtype=np.float32)
        self.action_space = spaces.Discrete(3)
        # Offsets (row, column) of the nine cells seen, for each direction
        right = np.roll(_DIRECTIONS, -1, axis=0)
        self._views = [
            np.array([ahead * forward + side * right[d] for ahead in (2, 1, 0) for side in (-1, 0, 1)]).T
            for d, forward in enumerate(_DIRECTIONS)
        ]
        self._one_hot = np.eye(len(TILES), dtype=np.float32)
        self._grid = self._empty_grid()
        self._position = self._goal = self._other = (0, 0)
        self._direction = 1

    def _empty_grid(self) -> np.ndarray:
        """:return: The maze without colours, [rows, columns], with a border of two unseen cells around it"""
        maze = np.full((5, self.corridor_length + 2), _WALL)
        maze[2, 1:-1] = _FLOOR
        return np.pad(maze, 2, constant_values=_UNSEEN)

    def _observation(self) -> np.ndarray:
        rows, columns = self._views[self._direction]
        row, column = self._position
        seen: np.ndarray = self._one_hot[self._grid[row + rows, column + columns]].reshape(-1)
        return seen

    def _begin(self) -> None:
        cue, upper = self.np_random.integers(2, size=2)
        colours = (_GREEN, _BLUE)
        start, end = 3, self.corridor_length + 2  # columns of C and of the junction, in the padded grid
        self._grid[4, start] = colours[cue]
        self._grid[3, end], self._grid[5, end] = colours[upper], colours[1 - upper]
        self._goal = (3 if cue == upper else 5, end)
        self._other = (5 if cue == upper else 3, end)
        self._position, self._direction = (4, start), 1

    def _move(self, action: int) -> tuple[float, bool, dict[str, Any]]:
        if action == FORWARD:
            down, right = _DIRECTIONS[self._direction]
            ahead = (self._position[0] + int(down), self._position[1] + int(right))
            if self._grid[ahead] != _WALL:
                self._position = ahead
        else:
            self._direction = (self._direction + (1 if action == TURN_RIGHT else -1)) % 4
        success = self._position == self._goal
        return float(success), success or self._position == self._other, {"is_success": success}

    def _picture(self) -> np.ndarray:
        picture: np.ndarray = _PICTURE[self._grid]
        picture[self._position] = base.AGENT
        return picture[2:-2, 2:-2]
