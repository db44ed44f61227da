"""
``python -m sb3_attention_ac.train``: the same as ``python -m rl_zoo3.train``, without need for the start-up hook. On several
processes:

    torchrun --nproc-per-node=2 -m sb3_attention_ac.train --algo aac --env HalfCheetah-v5

``n_envs`` and ``batch_size`` of the hyperparameters are those of all processes together: each gets its part.
An entry without ``batch_size`` has the default in each.
"""

import argparse
import atexit
import os
import secrets
import shutil
import sys
import tempfile
from typing import Any

import rl_zoo3.train
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.utils import get_device

from sb3_attention_ac.distributed import is_launched, maximum, start
from sb3_attention_ac.zoo import register


class RankExperimentManager(ExperimentManager):
    """What one of several processes does of a training run."""

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        :return: The hyperparameters with this process's part of environments and minibatches, and as they are in the file
        :raises ValueError: If they cannot be divided
        """
        hyperparams, saved = super().read_hyperparameters()
        n = int(os.environ["WORLD_SIZE"])
        for name in ("n_envs", "batch_size"):
            whole = hyperparams.get(name, 1 if name == "n_envs" else None)
            if whole is not None and whole % n != 0:
                raise ValueError(f"{name}={whole} cannot be divided among {n} processes: use -params {name}:{n * whole}.")
            if whole is not None:
                hyperparams[name] = whole // n
        return hyperparams, saved

    def create_callbacks(self) -> None:
        """Checkpoints and evaluations after as many steps of all processes as the command line says"""
        n = int(os.environ["WORLD_SIZE"])
        self.save_freq, self.eval_freq = self.save_freq // n, self.eval_freq // n
        super().create_callbacks()  # type: ignore[no-untyped-call]


def _command() -> argparse.Namespace:
    """
    :return: What matters of the command line to several processes
    :raises SystemExit: If the command is not for several
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--algo", default="ppo")  # RL Zoo's default
    parser.add_argument("--seed", type=int, default=-1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("-optimize", "--optimize-hyperparameters", action="store_true")
    given, _ = parser.parse_known_args()
    if given.algo != "aac":
        sys.exit(f"--algo {given.algo} cannot train on several processes: each would train a part alone. Use --algo aac.")
    if given.optimize_hyperparameters:
        sys.exit("-optimize cannot run under torchrun: start several searches with one --storage and --study-name instead.")
    return given


def _common_seed(given: argparse.Namespace) -> int | None:
    """:return: A seed for all processes, where the command line has none: RL Zoo would draw one in each"""
    if given.seed >= 0:
        return None
    start(get_device(given.device))
    return maximum(secrets.randbelow(2**31))


def _silent(arguments: list[str], folder: str) -> list[str]:
    """:return: Arguments for a process beside rank 0, which keeps no records of its own"""
    kept = [argument for argument in arguments if argument not in ("-P", "--progress", "--track")]
    return [*kept, "--log-folder", folder, "--eval-freq", "-1", "--save-freq", "-1", "--tensorboard-log", ""]


def main() -> None:
    """Register the algorithm and run the training script of RL Zoo."""
    register()
    if is_launched():
        vars(rl_zoo3.train)["ExperimentManager"] = RankExperimentManager
        if (seed := _common_seed(_command())) is not None:
            sys.argv += ["--seed", str(seed)]
        if os.environ["RANK"] != "0":
            folder = tempfile.mkdtemp()  # what it writes nobody reads
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            sys.argv = _silent(sys.argv, folder)
            sys.stdout = open(os.devnull, "w")
    rl_zoo3.train.train()


if __name__ == "__main__":
    main()
