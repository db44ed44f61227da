"""
Steps per second of 16 environments with random actions, in Gymnasium one after the other and in a pool. Writes speed.csv.

    python benchmarks/pools/speed.py
"""

import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_attention_ac.compare.names import register_environments
from sb3_attention_ac.envs.envpool import EnvPoolVecEnv, minigrid_view
from sb3_attention_ac.envs.minigrid import MiniGridView

SPEEDS = Path(__file__).with_name("speed.csv")
N_ENVS, REPEATS, SECONDS = 16, 5, 1.0
TASKS = ("MiniGrid-MemoryS7-v0", "HalfCheetah-v5", "Acrobot-v1", "CartPole-v1")


def steps_per_second(env: VecEnv) -> float:
    """:return: Of all environments together, with random actions"""
    n, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        env.step(np.array([env.action_space.sample() for _ in range(N_ENVS)]))
        n += N_ENVS
    return n / (time.perf_counter() - start)


def main() -> None:
    """Measure in turns, and write the medians."""
    register_environments()
    rows = []
    for task in TASKS:
        is_grid = task.startswith("MiniGrid")
        gymnasium = make_vec_env(task, N_ENVS, seed=0, wrapper_class=MiniGridView if is_grid else None)
        space, view = (gymnasium.observation_space, minigrid_view) if is_grid else (None, None)
        pools = [EnvPoolVecEnv(task, N_ENVS, transform=view, observation_space=space, num_threads=n) for n in (1, 2)]
        envs = [gymnasium, *pools]
        for env in envs:
            env.reset()
        measured = np.array([[steps_per_second(env) for env in envs] for _ in range(REPEATS)])
        speeds = [f"{median(column):,.0f}" for column in measured.T]
        columns = ("Gymnasium", "EnvPool, 1 thread", "EnvPool, 2 threads")
        rows.append({"16 environments": task, **dict(zip(columns, speeds, strict=True))})
        print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(SPEEDS, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
