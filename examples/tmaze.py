"""
A T-maze: a sign at the start says which way to turn at the end of a corridor, where it is long out of sight. PPO can only
guess; a memory actor can remember.

    python examples/tmaze.py
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_attention_ac import AAC

FORWARD, BACK, LEFT, RIGHT = range(4)
GOAL_REWARD, BUMP_REWARD = 4.0, -0.1


class TMaze(gym.Env[np.ndarray, np.int64]):
    """
    The maze of Bakker 2001, "Reinforcement Learning with Long Short-Term Memory".

    :param length: Steps from the sign to the junction
    """

    def __init__(self, length: int) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (4,))  # sign for left, for right, corridor, junction
        self.action_space = spaces.Discrete(4)
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.n_steps = 0
        self.way = int(self.np_random.choice([LEFT, RIGHT]))
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        at_junction = self.position == self.length
        turned = at_junction and action in (LEFT, RIGHT)
        moved = (action == FORWARD and not at_junction) or (action == BACK and self.position > 0)
        if moved:
            self.position += 1 if action == FORWARD else -1
        reward = 0.0 if moved else GOAL_REWARD if turned and action == self.way else BUMP_REWARD
        return self._observation(), reward, turned, self.n_steps >= 3 * self.length, {}

    def _observation(self) -> np.ndarray:
        shown = self.way - LEFT if self.position == 0 else 3 if self.position == self.length else 2
        observation = np.zeros(4, dtype=np.float32)
        observation[shown] = 1.0
        return observation


def main() -> None:
    """Train PPO and a memory actor, and evaluate both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=20, help="Steps from the sign to the junction")
    parser.add_argument("--steps", type=int, default=60_000, help="Number of steps, over all environments")
    parser.add_argument("--episodes", type=int, default=100, help="Number of episodes of the evaluation")
    parser.add_argument("--seed", type=int, default=0, help="Seed")
    args = parser.parse_args()

    print(f"guessing: {(GOAL_REWARD + BUMP_REWARD) / 2:.2f}, remembering: {GOAL_REWARD:.2f}")
    remembers = {"memory_actor": True, "context_length": max(args.length, 32)}  # sees at least so many steps back
    for name, algorithm, policy_kwargs in (("PPO", PPO, {}), ("AAC with memory_actor=True", AAC, remembers)):
        env = make_vec_env(TMaze, n_envs=8, seed=args.seed, env_kwargs={"length": args.length})
        model = algorithm(
            "MlpPolicy", env, n_steps=128, batch_size=256, policy_kwargs=policy_kwargs, seed=args.seed, device="cpu"
        )
        model.learn(args.steps, progress_bar=True)
        evaluation_env = make_vec_env(TMaze, n_envs=10, seed=10_000 + args.seed, env_kwargs={"length": args.length})
        mean, _ = evaluate_policy(model, evaluation_env, n_eval_episodes=args.episodes)
        print(f"{name}: {mean:.2f}", flush=True)


if __name__ == "__main__":
    main()
