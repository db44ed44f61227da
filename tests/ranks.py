"""
What test_distributed.py runs under torchrun: python ranks.py WHAT FOLDER. Each process leaves FOLDER/<rank>.pt.
"""

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common import callbacks
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from sb3_attention_ac import AAC, distributed
from sb3_attention_ac.train import _command, _common_seed

SETTINGS: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "n_epochs": 2, "seed": 3, "device": "cpu"}
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"context_length": 8, "d_model": 16, "n_heads": 2},
    "memory": {"context_length": 8, "d_model": 16, "n_heads": 2, "memory_actor": True},
    "shared": {"context_length": 8, "d_model": 16, "n_heads": 2, "memory_actor": True, "share_encoder": True},
}


def make_model(kind: str, n_envs: int, env_id: str = "CartPole-v1", **settings: Any) -> Any:
    env: Any = make_vec_env(env_id, n_envs)
    if env_id == "Pendulum-v1":
        env = VecNormalize(env)
    return AAC("MlpPolicy", env, policy_kwargs=NETWORKS[kind], **{**SETTINGS, **settings})


class AtStep(BaseCallback):
    """Does something in one of the processes"""

    def __init__(self, rank: int, step: int, what: str):
        super().__init__()
        self.rank, self.step, self.what = rank, step, what

    def _on_step(self) -> bool:
        if distributed.rank() == self.rank and self.n_calls == self.step:
            if self.what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.what == "fail":
                raise RuntimeError("the simulator is gone")
            if self.what == "change":
                with th.no_grad():
                    self.model.policy.action_net.weight.add_(1.0)
            return self.what != "stop"
        return True


def train(folder: Path, kind: str, updates: int = 50) -> dict[str, Any]:
    """A run with gates, target_kl and statistics that all decide together"""
    model = make_model(kind, 2, "Pendulum-v1", target_kl=0.02)
    model.learn(updates * 2 * 2 * 16)
    statistics = model.get_vec_normalize_env()
    seen = {"mean": statistics.obs_rms.mean, "count": statistics.obs_rms.count, "return": statistics.ret_rms.var}
    own = {"observations": model.rollout_buffer.observations.copy(), "outputs": model.logger.output_formats}
    return {"parameters": model.policy.state_dict(), "steps": model.num_timesteps, **seen, **own}


def step(folder: Path, kind: str) -> dict[str, Any]:
    """One step of the optimizer on this process's half of a rollout that is given"""
    given = th.load(folder / "given.pt", weights_only=False)
    model = make_model(kind, 4, n_epochs=1, batch_size=64)
    model.learn(1)  # opens logger and buffer
    model.policy.load_state_dict(given["parameters"])
    model.policy.optimizer.state.clear()
    half, buffer = slice(4 * distributed.rank(), 4 * distributed.rank() + 4), model.rollout_buffer
    for name, array in given["storage"].items():
        buffer.storage.arrays[name][...] = array[:, half]  # in place: the buffer has these too
    for name, array in given["targets"].items():
        setattr(buffer, name, array[:, half])
    buffer._tensors, buffer._targets = None, {}
    model.train()
    return {"parameters": model.policy.state_dict()}


def stop(folder: Path, what: str) -> dict[str, Any]:
    """Something happens in one process"""
    model = make_model("mlp", 2)
    asked = [AtStep(1, 200, what), CheckpointCallback(50, str(folder), "checkpoint")]
    model.learn(10**9 if what in ("kill", "fail") else 2000, callback=asked)
    return {"steps": model.num_timesteps}


def go_on(folder: Path, what: str) -> dict[str, Any]:
    """A callback stops in one process; then all learn again"""
    model = make_model("mlp", 2, "Pendulum-v1")
    model.learn(2000, callback=[AtStep(1, 20, "stop")])
    statistics = model.get_vec_normalize_env()
    means = [statistics.obs_rms.mean.copy(), statistics.obs_rms.count]
    stopped_at = model.num_timesteps
    model.learn(128, reset_num_timesteps=what == "reset")
    return {"stopped_at": stopped_at, "steps": model.num_timesteps, "means": means, "parameters": model.policy.state_dict()}


def statistics(folder: Path, what: str) -> dict[str, Any]:
    """Each process has warmed up its statistics by itself; later rank 0 alone steps the environments between two calls"""
    env = VecNormalize(make_vec_env("Pendulum-v1", 2))
    model = AAC("MlpPolicy", env, policy_kwargs=NETWORKS["mlp"], **SETTINGS)
    rank, found = distributed.rank(), {}
    env.seed(rank)
    env.reset()
    if what == "other" and rank == 1:
        env.norm_obs = False
    for name, warms_up in (("first", True), ("second", rank == 0)):
        for _ in range(20 if warms_up else 0):
            env.step(np.array([env.action_space.sample() for _ in range(2)]))
        model.learn(128, reset_num_timesteps=False)
        found[name] = [env.obs_rms.mean.copy(), env.obs_rms.count, env.ret_rms.var.copy()]
    return found


def quiet(folder: Path, what: str) -> dict[str, Any]:
    """With SB3's messages; a second model of a process that has joined already"""
    return {"verbose": [make_model("mlp", 2, verbose=1).verbose for _ in range(2)]}


def progress(folder: Path, what: str) -> dict[str, Any]:
    """Where the progress bar ends, by the argument and as a callback; with a function as callback beside it"""
    bars: list[Any] = []

    class Counter:
        def __init__(self, total: int):
            self.total, self.n = total, 0
            bars.append(self)

        def update(self, n: int) -> None:
            self.n += n

        def refresh(self) -> None:
            """As tqdm's"""

        close = refresh

    callbacks.tqdm = Counter
    for arguments in (
        {"progress_bar": True},
        {"progress_bar": True, "callback": lambda *_: True},
        {"callback": callbacks.ProgressBarCallback()},
        {"callback": callbacks.CallbackList([callbacks.ProgressBarCallback()])},
    ):
        make_model("mlp", 2).learn(128, **arguments)
    return {"bars": [(bar.n, bar.total) for bar in bars]}


def records(folder: Path, what: str) -> dict[str, Any]:
    """Files that the script writes in every process, with a logger of its own"""
    model = make_model("mlp", 2)
    model.set_logger(configure(str(folder / "log"), ["csv"]))
    model.learn(3 * 2 * 2 * 16).save(folder / f"of_{distributed.rank()}")
    return {"formats": len(model.logger.output_formats)}


def leave(folder: Path, what: str) -> dict[str, Any]:
    """Threads during the run and after it, by their names"""

    def threads() -> list[str]:
        return [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]

    make_model("memory", 2).learn(64)
    during = threads()
    distributed._leave()
    return {"during": during, "after": threads()}


def unequal(folder: Path, what: str) -> dict[str, Any]:
    distributed.start(th.device("cpu"))
    rank = distributed.rank()
    if what == "n_envs":
        make_model("mlp", 1 + rank).learn(100)
    elif what == "gamma":
        make_model("mlp", 2, gamma=0.9 + 0.09 * rank).learn(100)
    elif what == "masks":
        masks: dict[str, Any] = {"wrapper_class": ActionMasker, "wrapper_kwargs": {"action_mask_fn": lambda env: np.ones(2)}}
        model = make_model("mlp", 2)
        model.set_env(make_vec_env("CartPole-v1", 2, **(masks if rank else {})))
        model.learn(100)
    else:
        make_model(["memory", "shared"][rank], 2).learn(100)
    return {}


def helpers(folder: Path, what: str) -> dict[str, Any]:
    """The functions by themselves"""
    distributed.start(th.device("cpu"))
    rank = distributed.rank()
    values = th.arange(6.0).reshape(3, 2) ** 2 + 10 * rank
    parameters = [th.nn.Parameter(th.zeros(2)) for _ in range(3)]
    parameters[0].grad = th.tensor([1.0, 2.0]) * (rank + 1)
    if rank == 1:
        parameters[1].grad = th.tensor([4.0, 4.0])
    distributed.average_gradients(parameters)
    sys.argv = ["train", "--algo", "aac"]
    return {
        "std_mean": distributed.std_mean(values),
        "gradients": [parameter.grad for parameter in parameters],
        "mean": distributed.mean(float(rank)),
        "agree": [distributed.all_agree(True), distributed.all_agree(rank == 0)],
        "envs": distributed.of_all_envs(np.full((2, 1), rank)),
        "seed": _common_seed(_command()),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    what, argument, target = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    functions = {
        "train": train,
        "step": step,
        "stop": stop,
        "go_on": go_on,
        "unequal": unequal,
        "helpers": helpers,
        "leave": leave,
        "progress": progress,
        "records": records,
        "quiet": quiet,
        "statistics": statistics,
    }
    rank = os.environ["RANK"]
    result = functions[what](target, argument)
    th.save(result, target / f"{rank}.pt")
