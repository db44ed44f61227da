"""
Which steps does an agent keep as landmarks? Train one on three corridors of 50 steps, play an episode, and draw them:

    python benchmarks/kept_steps.py    (about three minutes; writes docs/images/kept_steps.png)
"""

import argparse
from pathlib import Path

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule

import sb3_attention_ac.envs  # noqa: F401  (registers the environments)
from sb3_attention_ac import AttentionActorCritic
from sb3_attention_ac.networks.kv_cache import KVCache

ENV_ID = "EndlessTMaze3x50-v0"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "kept_steps.png"


def train(seed: int, steps: int) -> AttentionActorCritic:
    """:return: The agent of ``benchmarks/rewriting``"""
    model = AttentionActorCritic(
        "MlpPolicy",
        make_vec_env(ENV_ID, 16, seed=seed),
        LinearSchedule(1e-3, 0.0, 1.0),
        n_steps=128,
        batch_size=256,
        n_epochs=5,
        policy_kwargs=dict(
            memory_actor=True, share_encoder=True, context_length=8, age_input=True, n_landmarks=8, landmark_rule="surprise"
        ),
        seed=seed,
        device="cpu",
    )
    return model.learn(steps)


def play(model: AttentionActorCritic, seed: int) -> tuple[list[int], list[list[int]]]:
    """
    :param model: The agent
    :param seed: Seed of the episode
    :return: The steps that show a cue, and of each step those that are kept as landmarks
    """
    env = gym.make(ENV_ID)
    obs, _ = env.reset(seed=seed)
    state, start, over = None, True, False
    cues: list[int] = []
    kept: list[list[int]] = []
    while not over:
        if obs[1:].any():
            cues.append(len(kept))
        action, state = model.predict(obs, state, np.array([start]), deterministic=True)
        assert state is not None
        ages = KVCache._make(state).landmark_ages[0]  # an age is the step's number
        kept.append([int(age) for age in ages if age >= 0])
        obs, _, terminated, truncated, _ = env.step(action)
        start, over = False, terminated or truncated
    return cues, kept


def draw(cues: list[int], kept: list[list[int]], path: Path) -> None:
    """:param path: Where to write the picture"""
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    pairs = np.array([(step, age) for step, ages in enumerate(kept) for age in ages])
    is_cue = np.isin(pairs[:, 1], cues)
    axes.plot([0, len(kept)], [0, len(kept)], color="0.8", lw=1)
    axes.scatter(pairs[~is_cue, 0], pairs[~is_cue, 1], s=3, color="0.6", label="kept: other steps")
    axes.scatter(pairs[is_cue, 0], pairs[is_cue, 1], s=6, color="C3", label="kept: steps that show a cue")
    axes.scatter(cues, cues, marker="*", s=90, color="C0", zorder=3, label="a cue is shown")
    axes.set(xlabel="step of the episode", ylabel="step that is kept as a landmark")
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400_000)
    parser.add_argument("--out", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    th.set_num_threads(1)
    draw(*play(train(arguments.seed, arguments.steps), arguments.seed), arguments.out)


if __name__ == "__main__":
    main()
