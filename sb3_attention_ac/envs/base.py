"""What the mazes share: a picture of the cells."""

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
    A maze that can be drawn.

    :param render_mode: None or "rgb_array"
    :raises ValueError: If there is no such mode
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium declares it so)

    def __init__(self, render_mode: str | None = None):
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode={render_mode!r} was given, but it must be None or 'rgb_array'.")
        self.render_mode = render_mode

    def _picture(self) -> np.ndarray:
        """:return: What each cell shows, [rows, columns]"""
        raise NotImplementedError

    def render(self) -> np.ndarray | None:
        """:return: The maze with the agent in it, uint8 [height, width, 3]; None without render_mode="rgb_array" """
        if self.render_mode is None:
            return None
        image: np.ndarray = _COLOURS[self._picture()].repeat(_PIXELS, axis=0).repeat(_PIXELS, axis=1)
        return image
