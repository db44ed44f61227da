"""
Plot what the model predicts for each next step against what then happened, over one episode. Trains briefly on Pendulum-v1
with next-step prediction, unless a saved model is given.

    python examples/predict_next.py
    python examples/predict_next.py --model my_model --env CartPole-v1
"""

import argparse

import numpy as np
import rl_zoo3.import_envs  # noqa: F401
import torch as th
from matplotlib.figure import Figure
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_attention_ac import AAC
from sb3_attention_ac.inspection import collect_trajectory, predict_next
from sb3_attention_ac.type_aliases import TrajectoryWindows


def first_episode(windows: TrajectoryWindows) -> TrajectoryWindows:
    """:return: The first episode alone: after its last step comes the next one's first observation, which no action led to"""
    return windows.first(int((windows.episode_ids[0] == windows.episode_ids[0, 0]).sum()))


def table(rewards: th.Tensor, features: th.Tensor) -> np.ndarray:
    """:return: Rewards [1, W] and features [1, W, F] side by side, [W, 1 + F]"""
    return np.column_stack([rewards[0].cpu().numpy(), features[0].cpu().numpy()])


def plot_predictions(expected: np.ndarray, real: np.ndarray, names: list[str]) -> Figure:
    """
    :param expected: What was expected at each step, one column for each quantity, [W, K]
    :param real: What happened, [W, K]
    :param names: Names of the quantities
    :return: One axis for each, two lines in it
    """
    figure = Figure(figsize=(8, 0.8 + 1.5 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 1, squeeze=False, sharex=True)[:, 0]
    for column, (axis, name) in enumerate(zip(axes, names, strict=True)):
        axis.plot(real[:, column], color="0.6", linewidth=3, label="what happened")
        axis.plot(expected[:, column], color="C0", linewidth=1, label="what was expected one step before")
        axis.set_ylabel(name)
    axes[0].legend(loc="upper right", fontsize="small")
    axes[-1].set_xlabel("step")
    return figure


def main() -> None:
    """Load or train a model and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="A saved model, trained with aux_loss='next_step'; without one, a model is trained")
    parser.add_argument("--stats", help="The model's vecnormalize.pkl, if it was trained with VecNormalize")
    parser.add_argument("--env", default="Pendulum-v1", help="Environment ID")
    parser.add_argument("--steps", type=int, default=20_000, help="Number of training steps")
    parser.add_argument(
        "--length", type=int, help="Number of steps, up to the end of the episode (default: the training window)"
    )
    parser.add_argument("--out", default="prediction.png", help="Where to save the picture")
    args = parser.parse_args()

    if args.model is None:
        envs = make_vec_env(args.env, n_envs=4, seed=0)
        model = AAC("MlpPolicy", envs, n_steps=256, learning_rate=1e-3, gamma=0.9, aux_loss="next_step", aux_coef=1.0, seed=0)
        model.learn(args.steps)
    else:
        model = AAC.load(args.model)
    env = make_vec_env(args.env, seed=1)
    if args.stats is not None:  # observations and rewards as in training
        env = VecNormalize.load(args.stats, env)
        env.training = False
    windows = first_episode(collect_trajectory(model, env, None if args.length is None else args.length + 1))
    if windows.episode_ids.shape[1] < 2:
        raise SystemExit("The first episode has one step: there is no next one to predict.")
    # The action taken at a step, and what it led to, are written in the step after it
    actions, rewards = windows.previous_actions[:, 1:], windows.previous_rewards[:, 1:]
    features = model.policy.encode_windows(windows, 1).features[:, 1:].detach()
    so_far = windows.first(windows.episode_ids.shape[1] - 1)
    expected = predict_next(model.policy, so_far, actions)
    names = ["reward", *(f"observation {i}" for i in range(features.shape[-1]))]
    figure = plot_predictions(table(expected.rewards, expected.features), table(rewards, features), names[:8])
    figure.savefig(args.out, dpi=150)
    print(f"Prediction: {args.out}")


if __name__ == "__main__":
    main()
