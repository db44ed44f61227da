"""
Plot what a model attends to along a trajectory, and which values it gives to the steps. Trains briefly on CartPole-v1 without
velocities, unless a saved model is given.

    python examples/inspect_attention.py
    python examples/inspect_attention.py --model aac_cartpole --env CartPole-v1 --network critic
    python examples/inspect_attention.py --env popgym:popgym-RepeatPreviousEasy-v0 --local-window 1 --steps 100000
"""

import argparse

import numpy as np
import rl_zoo3.import_envs  # noqa: F401
from matplotlib.figure import Figure
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_attention_ac import AAC
from sb3_attention_ac.inspection import attention_weights, collect_trajectory, plot_attention, trajectory_values


def plot_values(values: np.ndarray, episode_starts: np.ndarray) -> Figure:
    """
    :param values: Value of each step, [W]
    :param episode_starts: Whether each step is the first of its episode, [W]
    :return: The values as a line that breaks between episodes
    """
    figure = Figure(figsize=(7, 3), layout="constrained")
    axis = figure.subplots()
    borders = np.flatnonzero(episode_starts[1:]) + 1
    for steps in np.split(np.arange(len(values)), borders):
        axis.plot(steps, values[steps], ".-", color="C0")
    axis.set(xlabel="step", ylabel="value")
    return figure


def main() -> None:
    """Load or train a model and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="A saved model; without one, a model is trained")
    parser.add_argument("--stats", help="The model's vecnormalize.pkl, if it was trained with VecNormalize")
    parser.add_argument("--env", default="CartPoleNoVel-v1", help="Environment ID")
    parser.add_argument("--network", default="actor", choices=["actor", "critic"], help="Whose attention to draw")
    parser.add_argument("--steps", type=int, default=30_000, help="Number of training steps")
    parser.add_argument("--local-window", type=int, default=4, help="How many steps feed the MLP directly, past attention")
    parser.add_argument("--length", type=int, default=64, help="Number of steps of the trajectory")
    parser.add_argument("--out", default="attention.png", help="Where to save the heat map")
    parser.add_argument("--out-values", default="values.png", help="Where to save the values")
    args = parser.parse_args()

    if args.model is None:
        envs = make_vec_env(args.env, n_envs=8, seed=0)
        policy_kwargs = {"memory_actor": True, "context_length": 32, "local_window": args.local_window}
        model = AAC("MlpPolicy", envs, n_steps=128, batch_size=256, learning_rate=1e-3, policy_kwargs=policy_kwargs, seed=0)
        model.learn(args.steps)
    else:
        model = AAC.load(args.model)
    env = make_vec_env(args.env, seed=1)
    if args.stats is not None:  # observations and rewards as in training
        env = VecNormalize.load(args.stats, env)
        env.training = False
    windows = collect_trajectory(model, env, args.length)
    starts = windows.episode_starts[0].cpu().numpy()
    plot_attention(attention_weights(model.policy, windows, args.network), starts).savefig(args.out, dpi=150)
    plot_values(trajectory_values(model.policy, windows), starts).savefig(args.out_values, dpi=150)
    print(f"Attention: {args.out}, values: {args.out_values}")


if __name__ == "__main__":
    main()
