"""
The same script with PPO, A2C and AttentionActorCritic. One seed shows that it runs, not which is better: for a comparison
over seeds see docs/compare.md.

    python examples/compare_ppo_a2c.py --env Pendulum-v1
"""

import argparse
import time

from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_attention_ac import AAC

ALGORITHMS: tuple[type[PPO | A2C | AAC], ...] = (PPO, A2C, AAC)


def main() -> None:
    """Train and evaluate one model of each algorithm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1", help="Environment ID")
    parser.add_argument("--steps", type=int, default=50_000, help="Number of steps, over all environments")
    parser.add_argument("--episodes", type=int, default=10, help="Number of episodes of the evaluation")
    args = parser.parse_args()

    for algorithm in ALGORITHMS:
        env = make_vec_env(args.env, n_envs=8, seed=0)
        model = algorithm("MlpPolicy", env, n_steps=32, seed=0, device="cpu")
        start = time.perf_counter()
        model.learn(args.steps)
        seconds = time.perf_counter() - start
        mean, std = evaluate_policy(model, make_vec_env(args.env, seed=1), n_eval_episodes=args.episodes)
        print(f"{algorithm.__name__}: {mean:.1f} +/- {std:.1f} after {args.steps} steps in {seconds:.0f} s")


if __name__ == "__main__":
    main()
