"""
Does it learn the same in EnvPool's environments as in Gymnasium's? Writes results.csv beside this file.

    pip install ".[envpool]"
    python benchmarks/pools/learn.py --seeds 5
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from sb3_attention_ac import AttentionActorCritic
from sb3_attention_ac.envs.envpool import EnvPoolVecEnv

RESULTS = Path(__file__).with_name("results.csv")
N_ENVS, EPISODES, EVALUATION_SEED = 8, 20, 10_000
STEPS = {"CartPole-v1": 50_000, "Acrobot-v1": 100_000}


def in_gymnasium(task: str, seed: int) -> VecEnv:
    """Gymnasium's environments, one after the other"""
    return make_vec_env(task, n_envs=N_ENVS, seed=seed)


def in_envpool(task: str, seed: int) -> VecEnv:
    """EnvPool's, with other starts for the same seed"""
    return VecMonitor(EnvPoolVecEnv(task, n_envs=N_ENVS, seed=1_000 * seed, num_threads=1))


SOURCES: dict[str, Callable[[str, int], VecEnv]] = {"aac": in_gymnasium, "aac-envpool": in_envpool}


def learned(task: str, source: str, seed: int) -> dict[str, object]:
    """
    :param task: Name of the environment
    :param source: Whose environments to train in
    :param seed: Seed
    :return: A row of the results; evaluated in Gymnasium's environment, whatever it was trained in
    """
    model = AttentionActorCritic(
        "MlpPolicy", SOURCES[source](task, seed), n_steps=256, batch_size=256, seed=seed, device="cpu"
    )
    start = time.perf_counter()
    model.learn(STEPS[task])
    seconds = time.perf_counter() - start
    returns, _ = evaluate_policy(model, make_vec_env(task, n_envs=4, seed=EVALUATION_SEED), EPISODES)
    return {
        "environment": task,
        "algorithm": source,
        "seed": seed,
        "steps": model.num_timesteps,
        "final": returns,
        "evaluations": 1,
        "episodes": EPISODES,
        "train_seconds": round(seconds, 2),
    }


def main() -> None:
    """Train on every task in both, over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0 on")
    seeds = range(parser.parse_args().seeds)
    th.set_num_threads(1)
    rows = []
    for task in STEPS:
        for seed in seeds:
            for source in SOURCES:
                rows.append(learned(task, source, seed))
                print(rows[-1], flush=True)
    pd.DataFrame(rows).sort_values(["environment", "algorithm", "seed"]).to_csv(RESULTS, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
