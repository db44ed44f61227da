"""
Meta-learning: a memory actor on bandits. Which arms are good changes per episode, and only rewards reveal it; so the wrapper
PreviousActionReward puts the last reward into the observation. Without it the actor knows what it did, but not what it got.

    python examples/bandit.py
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_attention_ac import AAC
from sb3_attention_ac.wrappers import PreviousActionReward

N_ARMS, N_PULLS = 5, 40


class Bandit(gym.Env[np.ndarray, np.int64]):
    """Bernoulli arms with probabilities resampled in each episode (Duan et al. 2016). Observations carry no information."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (1,))
        self.action_space = spaces.Discrete(N_ARMS)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.probabilities, self.n_pulls = self.np_random.random(N_ARMS), 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.n_pulls += 1
        reward = float(self.np_random.random() < self.probabilities[action])
        return np.zeros(1, dtype=np.float32), reward, self.n_pulls == N_PULLS, False, {}


def main() -> None:
    """Train with and without the wrapper, and evaluate on new bandits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400_000, help="Number of steps, over all environments")
    parser.add_argument("--episodes", type=int, default=500, help="Number of episodes of the evaluation")
    parser.add_argument("--seed", type=int, default=0, help="Seed")
    args = parser.parse_args()

    print(f"a random arm: {N_PULLS / 2:.1f}, always the best arm: {N_PULLS * N_ARMS / (N_ARMS + 1):.1f}")
    for wrapper, policy in ((None, "MlpPolicy"), (PreviousActionReward, "MultiInputPolicy")):
        env = make_vec_env(Bandit, n_envs=64, seed=args.seed, wrapper_class=wrapper)
        model = AAC(
            policy,
            env,
            learning_rate=lambda progress_remaining: 1e-3 * progress_remaining,
            n_steps=N_PULLS,
            batch_size=16 * N_PULLS,
            policy_kwargs={"memory_actor": True, "context_length": N_PULLS},
            seed=args.seed,
            device="cpu",
        )
        model.learn(args.steps, progress_bar=True)
        evaluation_env = make_vec_env(Bandit, n_envs=10, seed=10_000 + args.seed, wrapper_class=wrapper)
        mean, _ = evaluate_policy(model, evaluation_env, n_eval_episodes=args.episodes)
        print(f"{'without' if wrapper is None else 'with'} PreviousActionReward: {mean:.1f}", flush=True)


if __name__ == "__main__":
    main()
