"""What happened in one update, averaged over its minibatches and written to SB3's logger."""

from collections import defaultdict

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import explained_variance


class TrainingLog:
    """Collects tensors without reading them: reading one waits for the device."""

    def __init__(self) -> None:
        self._values: dict[str, list[th.Tensor]] = defaultdict(list)

    def add(self, name: str, value: th.Tensor) -> None:
        """
        :param name: Key, without "train/"
        :param value: A scalar of one minibatch
        """
        self._values[name].append(value.detach())

    def last(self, name: str) -> float:
        """:return: The latest value, minus infinity if there is none"""
        return self._values[name][-1].item() if self._values[name] else -float("inf")

    def record(self, logger: Logger, values: np.ndarray, returns: np.ndarray, n_epochs: int) -> None:
        """
        :param logger: SB3's logger
        :param values: V(s_t) before the update, [n_steps, n_envs]
        :param returns: TD(lambda) returns, [n_steps, n_envs]
        :param n_epochs: Number of epochs done
        """
        for name, collected in self._values.items():
            if collected:
                logger.record(f"train/{name}", th.stack(collected).mean().item())
        # Before the update: how well the critic does on trajectories that it has not learned from (out of sample)
        logger.record("train/explained_variance", explained_variance(values.flatten(), returns.flatten()))
        # In the last epoch: how well it does on those it has just learned from
        errors = self._values["value_loss"]
        variance = float(np.var(returns))
        if errors and variance > 0:
            last_epoch = th.stack(errors[-max(len(errors) // n_epochs, 1) :]).mean().item()
            logger.record("train/explained_variance_in_sample", 1 - last_epoch / variance)
