"""
A critic that sees more than the actor: a pole on a cart, with gravity, masses, length and force resampled in each episode.
While training, the critic is told what they are; the actor never is, and acts without them. What the critic knows shows in
its values; whether the actor benefits depends on the task, and one seed cannot show it.

    python examples/privileged_critic.py
"""

import argparse

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_attention_ac import AAC
from sb3_attention_ac.wrappers import HiddenConstants

ACTOR = ["observation"]
CRITICS = {"the critic sees what the actor sees": ["observation"], "and the constants": ["observation", "privileged"]}


def main() -> None:
    """Train with and without the privileged key, and evaluate both actors without it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1", help="Gymnasium environment that HiddenConstants knows")
    parser.add_argument("--steps", type=int, default=30_000, help="Number of steps, over all environments")
    parser.add_argument("--episodes", type=int, default=40, help="Number of episodes of the evaluation")
    parser.add_argument("--seed", type=int, default=0, help="Seed")
    parser.add_argument("--no-progress", action="store_true", help="Show no progress bar")
    args = parser.parse_args()

    for name, critic_keys in CRITICS.items():
        venv = make_vec_env(args.env, n_envs=8, seed=args.seed, wrapper_class=HiddenConstants)
        env = VecNormalize(venv, gamma=0.98, norm_obs_keys=ACTOR)  # the constants come scaled
        model = AAC(
            "MultiInputPolicy",
            env,
            n_steps=128,
            gamma=0.98,
            learning_rate=lambda progress_remaining: 1e-3 * progress_remaining,
            policy_kwargs={"actor_keys": ACTOR, "critic_keys": critic_keys},
            seed=args.seed,
            device="cpu",
        )
        model.learn(args.steps, progress_bar=not args.no_progress)

        evaluation_env = VecNormalize(
            make_vec_env(args.env, n_envs=10, seed=10_000 + args.seed, wrapper_class=HiddenConstants),
            norm_obs_keys=ACTOR,
            training=False,
            norm_reward=False,
        )
        evaluation_env.obs_rms = env.obs_rms
        mean, _ = evaluate_policy(model, evaluation_env, n_eval_episodes=args.episodes)
        explained = model.logger.name_to_value["train/explained_variance"]  # of the last update
        print(f"{name}: return {mean:.1f}, values explain {explained:.2f} of the returns' variance", flush=True)

    # The actor needs only its own keys: once deployed, it does not have to be told the constants
    plain = gym.make(args.env)
    obs, _ = plain.reset(seed=args.seed)
    normalized = env.normalize_obs({"observation": obs})
    action, _ = model.predict(normalized, deterministic=True)
    print(f"action in {args.env} without the constants: {action}")


if __name__ == "__main__":
    main()
