"""
A peer with attention by its own code: CleanRL's ppo_trxl.py (Transformer-XL), unchanged, on tasks of this suite. One run:

    python -m venv peer && . peer/bin/activate
    pip install torch==2.13.0 && pip install gymnasium==0.29.1 popgym minigrid tyro einops \
        stable-baselines3==2.8.0 sb3-contrib==2.8.0 && pip install --no-deps .
    git clone https://github.com/vwxyzjn/cleanrl
    OMP_NUM_THREADS=1 python benchmarks/attention_peer/trxl.py cleanrl/cleanrl/ppo_trxl/ppo_trxl.py \
        popgym-CountRecallEasy-v0 --seed 0 --steps 200000

It adds a row to the suite's results.csv. CleanRL's script needs Gymnasium below 1.0, so it has an environment of its own. Its
observations are one-hot, with the previous action and reward appended, as its network reads neither by itself. After training
it is evaluated as our runs are: with its most probable actions, in episodes of their own.

The other arguments of the script are those that its documentation gives for small vectors (ProofofMemory-v0) or, "wide", for
MiniGrid-MemoryS9-v0, with a memory as long as the task needs; "quick" has the learning rate of our entries.
"""

import argparse
import hashlib
import importlib
import os
import runpy
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pandas as pd
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation

KEY = ["environment", "algorithm", "seed"]
EPISODES = 100
# Task: longest episode, and how many steps the memory holds
TASKS = {
    "popgym-RepeatPreviousMedium-v0": (104, 64),
    "popgym-CountRecallEasy-v0": (52, 52),
    "PassiveTMaze100-v0": (101, 101),
    "MiniGrid-MemoryS7-v0": (245, 64),
}
SMALL = (
    "--num-envs 16 --num-steps 128 --num-minibatches 8 --update-epochs 4 --trxl-num-layers 4 --trxl-num-heads 1 --trxl-dim 64 "
    "--vf-coef 0.1 --max-grad-norm 0.5 --init-lr 3e-4 --init-ent-coef 0.001 --clip-coef 0.2"
)
SETTINGS = {
    "small": SMALL,
    "small-quick": SMALL.replace("--init-lr 3e-4", "--init-lr 1e-3 --norm-adv"),
    "wide": (
        "--num-envs 16 --num-steps 256 --num-minibatches 8 --update-epochs 3 --trxl-num-layers 2 --trxl-num-heads 4 "
        "--trxl-dim 256 --max-grad-norm 0.25 --clip-coef 0.2"
    ),
}


class Recorder:
    """Takes the place of TensorBoard's writer: keeps the scalars that the script logs."""

    scalars: ClassVar[dict[str, list[float]]] = {}

    def __init__(self, *args: Any):
        self.scalars.clear()

    def add_scalar(self, name: str, value: Any, step: int) -> None:
        self.scalars.setdefault(name, []).append(float(value))

    def add_text(self, *args: Any) -> None:
        """Nothing"""

    def close(self) -> None:
        """Nothing"""


class OneHotView(gym.ObservationWrapper[np.ndarray, Any, Any]):
    """
    MiniGrid's view as numbers of objects, colours and states, which ``FlattenObservation`` makes one-hot.

    :param env: In ``MiniGridView``
    """

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Box)
        self.observation_space = spaces.MultiDiscrete(env.observation_space.high.astype(int) + 1)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation.astype(int)


def own(module: str) -> Any:
    """:return: A module of ``sb3_attention_ac.envs``, alone: the package registers tasks that Gymnasium has from 1.0 on"""
    folder = importlib.import_module("sb3_attention_ac").__path__[0]
    package = types.ModuleType("sb3_attention_ac.envs")
    package.__path__ = [f"{folder}/envs"]
    sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(f"sb3_attention_ac.envs.{module}")


def make_task(task: str) -> Callable[..., gym.Env[Any, Any]]:
    """:return: What makes the task; CleanRL's script asks for a render mode"""

    def make(render_mode: str | None = None) -> gym.Env[Any, Any]:
        if task.startswith("PassiveTMaze"):
            env = own("passive_tmaze").PassiveTMaze(corridor_length=100)
        else:
            importlib.import_module(task.split("-")[0].lower())  # registers it
            env = gym.make(task)
            env = OneHotView(own("minigrid").MiniGridView(env)) if task.startswith("MiniGrid") else env
        previous = importlib.import_module("sb3_attention_ac.wrappers").PreviousActionReward
        return FlattenObservation(previous(env))

    return make


class Player:
    """
    The trained network with its most probable actions.

    :param trained: The globals of CleanRL's script after its last line
    """

    def __init__(self, trained: dict[str, Any]):
        self.agent, self.args, self.longest = trained["agent"], trained["args"], trained["max_episode_steps"]
        self.mask, self.indices = trained["memory_mask"], trained["memory_indices"]

    def play(self, env: gym.Env[Any, Any], seed: int) -> float:
        """
        :param env: Made by :func:`make_task`
        :param seed: Of this episode
        :return: Return of one episode
        """
        memory = th.zeros((1, self.longest, self.args.trxl_num_layers, self.args.trxl_dim))
        (obs, _), done, total, t = env.reset(seed=seed), False, 0.0, 0
        while not done:
            indices = self.indices[t : t + 1]  # [1, memory length]
            mask = self.mask[min(t, self.args.trxl_memory_length - 1)].unsqueeze(0)
            window = memory[:, indices[0]]
            with th.no_grad():
                x = self.agent.encoder(th.as_tensor(obs, dtype=th.float32).unsqueeze(0))
                x, new = self.agent.transformer(x, window, mask, indices)
                logits = self.agent.actor_branches[0](self.agent.hidden_post_trxl(x))
            memory[:, t] = new
            obs, reward, terminated, truncated, _ = env.step(int(logits.argmax()))
            done, total, t = terminated or truncated, total + float(reward), t + 1
        return total


def train(script: Path, arguments: list[str]) -> tuple[dict[str, Any], float]:
    """
    :param script: CleanRL's
    :param arguments: Its command line
    :return: Its globals after its last line, and how many seconds it took
    """
    writer = {"SummaryWriter": Recorder}
    stubs: dict[str, dict[str, Any]] = {"memory_gym": {}, "pom_env": {"PoMEnv": None}, "torch.utils.tensorboard": writer}
    for name, content in stubs.items():  # environments of its own need packages of their own
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)
    sys.argv = [str(script), *arguments]
    start = time.time()
    trained = runpy.run_path(str(script), run_name="__main__")
    return trained, time.time() - start


def main() -> None:
    """One run, one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path, help="ppo_trxl.py of CleanRL")
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--setting", choices=SETTINGS, default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--revision", default="", help="of CleanRL, for the column 'versions'")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.csv"))
    options = parser.parse_args()
    longest, memory = TASKS[options.task]
    gym.register("Peer-v0", entry_point=make_task(options.task), max_episode_steps=longest + 1, disable_env_checker=True)
    th.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    arguments = (
        f"--env-id Peer-v0 --no-cuda --seed {options.seed} --total-timesteps {options.steps} --anneal-steps {options.steps} "
        f"--trxl-memory-length {memory} {SETTINGS[options.setting]}"
    )
    trained, seconds = train(options.script.resolve(), arguments.split())
    env, player = gym.make("Peer-v0"), Player(trained)
    row = {
        "environment": options.task,
        "algorithm": f"trxl-{options.setting}",
        "seed": options.seed,
        "steps": int(trained["global_step"]),
        "final": np.mean([player.play(env, 10_000 + i) for i in range(EPISODES)]),
        "best_training": max(Recorder.scalars["episode/r_mean"]),  # of 100 episodes
        "diverged": False,
        "evaluations": 1,
        "episodes": EPISODES,
        "train_seconds": seconds,
        "settings": "s" + hashlib.sha256(arguments.split("--trxl-memory", 1)[1].encode()).hexdigest()[:11],
        "versions": f"torch={th.__version__} gymnasium={gym.__version__} cleanrl={options.revision}",
    }
    there = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame()
    rows = pd.concat([there, pd.DataFrame([row])]).drop_duplicates(KEY, keep="last").sort_values(KEY, kind="stable")
    rows.to_csv(options.out, index=False, float_format="%.6g", lineterminator="\n")


if __name__ == "__main__":
    main()
