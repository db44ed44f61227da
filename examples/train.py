"""
Train on CartPole-v1 and save the model.

    python examples/train.py
    python examples/evaluate.py
"""

import argparse

from stable_baselines3.common.env_util import make_vec_env

from sb3_attention_ac import AAC


def main() -> None:
    """Train with the settings that are given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000, help="Number of steps, over all environments")
    parser.add_argument("--model", default="aac_cartpole", help="Where to save the model")
    args = parser.parse_args()

    env = make_vec_env("CartPole-v1", n_envs=8, seed=0)
    model = AAC("MlpPolicy", env, n_steps=32, batch_size=256, gae_lambda=0.8, gamma=0.98, n_epochs=20, verbose=1, seed=0)
    model.learn(args.steps)
    model.save(args.model)


if __name__ == "__main__":
    main()
