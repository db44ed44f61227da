"""
Action masks and memory together: find a hidden submarine in a row of cells. Masks forbid cells that were shot at before; only
the hits and misses so far tell where the submarine lies, so the actor has to remember them. MaskablePPO has masks without
memory; an actor that ignores the masks has memory without them.

    python examples/masks_and_memory.py
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from stable_baselines3.common.env_util import make_vec_env

from sb3_attention_ac import AAC

HIT_REWARD, SHOT_REWARD = 1.0, -0.25


class Submarine(gym.Env[np.ndarray, np.int64]):
    """
    A submarine of a few cells lies in a row. Each action shoots at one cell; the observation says whether the last shot hit,
    not where it went. A hit counts once. The episode ends when every cell of the submarine was hit, or after ``2 * n_cells``
    shots.

    :param n_cells: Length of the row
    :param size: Length of the submarine
    """

    def __init__(self, n_cells: int = 16, size: int = 4) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (2,))  # the first step of the episode; a hit
        self.action_space = spaces.Discrete(n_cells)
        self.n_cells, self.size = n_cells, size

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.first = int(self.np_random.integers(self.n_cells - self.size + 1))
        self.free = np.ones(self.n_cells, dtype=bool)
        self.n_shots = self.n_hits = 0
        return np.array([1.0, 0.0], dtype=np.float32), {}

    def action_masks(self) -> np.ndarray:
        """What MaskablePPO and AAC ask for before each step: True for every cell that was not shot at yet."""
        return self.free

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        hit = bool(self.free[action] and self.first <= action < self.first + self.size)
        self.free[action] = False
        self.n_shots += 1
        self.n_hits += hit
        reward = SHOT_REWARD + HIT_REWARD * hit
        observation = np.array([0.0, hit], dtype=np.float32)
        return observation, reward, self.n_hits == self.size, self.n_shots == 2 * self.n_cells, {}


def main() -> None:
    """Train with masks, with memory, and with both, and say how many shots each needs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60_000, help="Number of steps, over all environments")
    parser.add_argument("--episodes", type=int, default=200, help="Number of episodes of the evaluation")
    parser.add_argument("--seed", type=int, default=0, help="Seed")
    parser.add_argument("--no-progress", action="store_true", help="Show no progress bar")
    args = parser.parse_args()

    memory = {"memory_actor": True, "share_encoder": True, "context_length": 32}
    variants: dict[str, tuple[Any, dict[str, Any], bool]] = {
        "masks alone (MaskablePPO)": (MaskablePPO, {}, True),
        "memory alone (AAC)": (AAC, memory, False),
        "masks and memory (AAC)": (AAC, memory, True),
    }
    for name, (algorithm, policy_kwargs, use_masking) in variants.items():
        env = make_vec_env(Submarine, n_envs=16, seed=args.seed)
        model = algorithm(
            "MlpPolicy",
            env,
            n_steps=128,
            batch_size=256,
            n_epochs=5,
            learning_rate=lambda progress_remaining: 1e-3 * progress_remaining,
            policy_kwargs=policy_kwargs,
            seed=args.seed,
            device="cpu",
        )
        model.learn(args.steps, use_masking=use_masking, progress_bar=not args.no_progress)
        evaluation_env = make_vec_env(Submarine, n_envs=10, seed=10_000 + args.seed)
        _, lengths = evaluate_policy(
            model, evaluation_env, args.episodes, deterministic=False, use_masking=use_masking, return_episode_rewards=True
        )
        print(f"{name}: {np.mean(lengths):.1f} shots", flush=True)


if __name__ == "__main__":
    main()
