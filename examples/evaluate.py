"""
Load a saved model and evaluate it, in two ways.

    python examples/train.py
    python examples/evaluate.py
"""

import argparse

import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_attention_ac import AAC


def main() -> None:
    """Evaluate the model that is given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="aac_cartpole", help="The saved model")
    parser.add_argument("--episodes", type=int, default=20, help="Number of episodes of the evaluation")
    parser.add_argument("--steps", type=int, default=500, help="Number of steps of the loop")
    args = parser.parse_args()

    env = make_vec_env("CartPole-v1", n_envs=2, seed=1)
    model = AAC.load(args.model)
    mean, std = evaluate_policy(model, env, n_eval_episodes=args.episodes)
    print(f"Mean reward: {mean:.2f} +/- {std:.2f} ({args.episodes} episodes, deterministic)")

    # Your own loop. A model with memory_actor=True needs `state` and `episode_start`; any other ignores them
    obs = env.reset()
    state, episode_start = None, np.ones(env.num_envs, dtype=bool)
    total = 0.0
    for _ in range(args.steps):
        action, state = model.predict(obs, state, episode_start, deterministic=True)  # type: ignore[arg-type]
        obs, rewards, episode_start, _ = env.step(action)
        total += float(rewards.sum())
    print(f"Mean reward per step: {total / (args.steps * env.num_envs):.2f}")


if __name__ == "__main__":
    main()
