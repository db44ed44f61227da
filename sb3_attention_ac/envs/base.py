"""What the mazes share: how an episode goes, and a picture of the cells."""

from typing import Any

import gymnasium as gym
import numpy as np

# What a cell can show, and its colour
WALL, FLOOR, GREEN, BLUE, GOAL, AGENT, UNSEEN = range(7)
_COLOURS = np.array(
    [(90, 90, 90), (255, 255, 255), (80, 200, 80), (80, 120, 230), (250, 200, 60), (220, 60, 60), (0, 0, 0)], dtype=np.uint8
)
_PIXELS = 8  # of a cell


class Maze(gym.Env[np.ndarray, np.int64]):
    """
    A maze says how an episode begins, what an action does, and what is seen. After ``max_steps`` steps an episode is cut off.

    :param render_mode: None or "rgb_array"
    :raises ValueError: If there is no such mode
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium declares it so)
    max_steps: int

    def __init__(self, render_mode: str | None = None):
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode={render_mode!r} was given, but it must be None or 'rgb_array'.")
        self.render_mode = render_mode
        self._t = 0  # steps of the episode so far

    def _begin(self) -> None:
        """Draw an episode."""
        raise NotImplementedError

    def _move(self, action: int) -> tuple[float, bool, dict[str, Any]]:
        """:return: Reward, terminated, and the information that is given if the episode ends here"""
        raise NotImplementedError

    def _observation(self) -> np.ndarray:
        raise NotImplementedError

    def _picture(self) -> np.ndarray:
        """:return: What each cell shows, [rows, columns]"""
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        :param seed: Seed of this and all following episodes
        :param options: Not used
        :return: The first observation, and an empty dictionary
        """
        super().reset(seed=seed)
        self._t = 0
        self._begin()
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param action: See the description of the maze
        :return: Observation, reward, terminated, truncated and information
        """
        self._t += 1
        reward, terminated, outcome = self._move(int(action))
        truncated = not terminated and self._t >= self.max_steps
        return self._observation(), reward, terminated, truncated, outcome if terminated or truncated else {}

    def render(self) -> np.ndarray | None:
        """:return: The maze with the agent in it, uint8 [height, width, 3]; None without render_mode="rgb_array" """
        if self.render_mode is None:
            return None
        image: np.ndarray = _COLOURS[self._picture()].repeat(_PIXELS, axis=0).repeat(_PIXELS, axis=1)
        return image


def draw_t(width: int, junction: int, goal: int, agent: tuple[int, int]) -> np.ndarray:
    """
    :param width: Number of columns
    :param junction: Column of the junction
    :param goal: Row of the goal, 1 or 3
    :param agent: Row and column of the agent
    :return: What each cell shows, [5, columns]
    """
    picture = np.full((5, width), WALL)
    picture[2, 1 : junction + 1] = picture[1:4, junction] = FLOOR
    picture[goal, junction], picture[agent] = GOAL, AGENT
    return picture
