"""
Evaluate an agent that was trained with RL Zoo and plot its learning curve.

    python -m rl_zoo3.train --algo aac --env CartPole-v1
    python examples/plot_training.py --env CartPole-v1
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import rl_zoo3.import_envs  # noqa: F401
from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import ALGOS, create_test_env, get_latest_run_id, get_saved_hyperparams
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import load_results

from sb3_attention_ac.zoo import ZOO_KEY, register


def evaluate(run: Path, algo: str, env_id: EnvironmentName, n_episodes: int) -> tuple[float, float]:
    """
    Evaluate the final model of a run with deterministic actions.

    :param run: Folder of the run
    :param algo: Key of the algorithm in RL Zoo
    :param env_id: Name of the environment
    :param n_episodes: Number of episodes
    :return: Mean and standard deviation of the episode rewards
    """
    hyperparams, stats_path = get_saved_hyperparams(str(run / env_id), test_mode=True)
    env_kwargs = hyperparams.pop("env_kwargs", None)
    env = create_test_env(
        env_id.gym_id, stats_path=stats_path, should_render=False, hyperparams=hyperparams, env_kwargs=env_kwargs
    )
    model = ALGOS[algo].load(run / f"{env_id}.zip")
    mean, std = evaluate_policy(model, env, n_eval_episodes=n_episodes, deterministic=True)
    env.close()
    assert isinstance(mean, float) and isinstance(std, float)
    return mean, std


def plot(run: Path, title: str, picture: Path, window: int = 20) -> None:
    """
    Plot the rewards of the training episodes, and of the evaluations in between.

    :param run: Folder of the run
    :param title: Title of the picture
    :param picture: Where to save the picture
    :param window: Number of episodes of the moving average
    """
    episodes = load_results(str(run))
    timesteps = episodes["l"].cumsum()
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(timesteps, episodes["r"], ".", markersize=3, alpha=0.3, color="C0")
    mean = episodes["r"].rolling(window, min_periods=1).mean()
    axes.plot(timesteps, mean, color="C0", label=f"training episodes (mean of {window})")
    evaluations = run / "evaluations.npz"
    # Written during training, unless `--eval-freq` is negative or longer than the training
    if evaluations.is_file():
        data = np.load(evaluations)
        mean, std = data["results"].mean(axis=1), data["results"].std(axis=1)
        axes.plot(data["timesteps"], mean, "o-", color="C1", label="evaluations (mean and standard deviation)")
        axes.fill_between(data["timesteps"], mean - std, mean + std, alpha=0.2, color="C1", linewidth=0)
    axes.set(title=title, xlabel="Timesteps", ylabel="Episode reward")
    axes.legend(loc="lower right")
    figure.savefig(picture, dpi=150)
    plt.close(figure)


def main() -> None:
    """Evaluate and plot the run that is given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=EnvironmentName, default=EnvironmentName("CartPole-v1"), help="Environment ID")
    parser.add_argument("--algo", default=ZOO_KEY, help="Key of the algorithm in RL Zoo")
    parser.add_argument("-f", "--folder", type=Path, default=Path("logs"), help="Log folder")
    parser.add_argument("--exp-id", type=int, default=0, help="Number of the run (default: the latest)")
    parser.add_argument("-n", "--n-episodes", type=int, default=20, help="Number of episodes of the evaluation")
    args = parser.parse_args()
    register()

    logs = args.folder / args.algo
    run = logs / f"{args.env}_{args.exp_id or get_latest_run_id(str(logs), args.env)}"
    if not run.is_dir():
        parser.error(f"there is no run of {args.env} in {logs}")
    picture = logs / f"{args.env}.png"
    mean, std = evaluate(run, args.algo, args.env, args.n_episodes)
    plot(run, f"{args.algo} on {args.env.gym_id}", picture)
    print(f"Model: {run / args.env}.zip")
    print(f"Learning curve: {picture}")
    print(f"Mean reward: {mean:.2f} +/- {std:.2f} ({args.n_episodes} episodes, deterministic)")


if __name__ == "__main__":
    main()
