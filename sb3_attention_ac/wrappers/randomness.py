"""Random numbers of a wrapper's own."""

from typing import Any

import gymnasium as gym
import numpy as np


class OwnGenerator:
    """
    Mixin of wrappers that draw numbers: not the environment's, as how much one of the two draws must not change what the other
    draws. Wrappers inside one another draw different numbers.
    """

    generator: np.random.Generator

    def seed_generator(self, seed: int | None) -> None:
        """
        :param seed: What ``reset`` was given; None to go on
        """
        if seed is not None:
            self.generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_n_inside(self),)))
        elif "generator" not in vars(self):
            self.generator = np.random.default_rng()


def _n_inside(env: Any) -> int:
    """:return: How many of the wrappers in there have a generator of their own"""
    n = 0
    while isinstance(env, gym.Wrapper):
        env = env.env
        n += isinstance(env, OwnGenerator)
    return n
