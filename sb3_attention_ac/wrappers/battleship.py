"""POPGym's Battleship with the cells already shot at masked: a task that needs masks and memory."""

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class MaskedBattleship(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """
    POPGym's Battleship (Morad et al. 2023, https://arxiv.org/abs/2303.01859) with action masks: cells already shot at are
    forbidden. Masks alone make the agent shoot everywhere once; where the ships lie shows only in what it remembers of its
    hits and misses. Random allowed shots return 0.08 on Easy, random shots without masks -0.45, hits alone 1.

    POPGym's action is a row and a column, MultiDiscrete([n, n]), and such masks cannot forbid a pair: here it is the number of
    the cell, Discrete(n * n), row by row. The observation stays what it was, 1 for a hit and 0 for a miss. Where the last shot
    went is not in it: put ``PreviousActionReward`` around this for an actor that does not read its previous actions by itself.

    ``action_masks()`` is what sb3_contrib's ``MaskablePPO`` and ``ActionMasker`` expect.

    :param env: popgym-BattleshipEasy-v0, -Medium-v0 or -Hard-v0, before any wrapper that changes its actions
    :raises ValueError: If the environment is not Battleship
    """

    def __init__(self, env: gym.Env[Any, Any]):
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._game: Any = env.unwrapped
        size: Any = getattr(self._game, "board_size", None)
        if not hasattr(self._game, "ship_sizes") or env.action_space != spaces.MultiDiscrete([size, size]):
            raise ValueError(f"MaskedBattleship needs POPGym's Battleship, e.g. popgym-BattleshipEasy-v0, not {env}.")
        self._size = int(size)
        self.action_space = spaces.Discrete(self._size**2)

    def action_masks(self) -> np.ndarray:
        """:return: True for each cell not shot at in this episode, [n * n]; all True before the first ``reset()``"""
        if not hasattr(self._game, "guesses"):
            return np.ones(self._size**2, dtype=bool)
        free: np.ndarray = self._game.guesses.reshape(-1) == 0
        return free

    def step(self, action: np.int64) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: Number of the cell, ``row * n + column``
        :return: What the environment returned
        """
        return self.env.step(np.array(divmod(int(action), self._size)))
