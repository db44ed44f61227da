"""What happened in one update, averaged over its minibatches and written to SB3's logger."""

from collections import defaultdict

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import explained_variance

from sb3_attention_ac.losses import approximate_kl


class TrainingLog:
    """
    Collects tensors without reading them: reading one waits for the device.

    :param clip_range: Present clipping parameter, to count what lies outside
    """

    def __init__(self, clip_range: float):
        self.clip_range = clip_range
        self._values: dict[str, list[th.Tensor]] = defaultdict(list)
        self._log_ratios: list[th.Tensor] = []
        self._epoch_start = 0

    def add(self, name: str, value: th.Tensor) -> None:
        """
        :param name: Key, without "train/"
        :param value: A scalar of one minibatch
        """
        self._values[name].append(value.detach())

    def add_log_ratio(self, log_ratio: th.Tensor) -> None:
        """:param log_ratio: log pi(a | s) - log pi_old(a | s) of one minibatch"""
        self._log_ratios.append(log_ratio.detach().flatten())

    def start_epoch(self) -> None:
        """Divergence is logged for the last epoch alone, as in PPO."""
        self._epoch_start = len(self._log_ratios)

    def last_kl(self) -> float:
        """:return: Approximate KL divergence in the latest minibatch"""
        return approximate_kl(self._log_ratios[-1]).item()

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
        if self._log_ratios:
            log_ratio = th.cat(self._log_ratios)
            outside = th.abs(th.exp(log_ratio) - 1) > self.clip_range
            logger.record("train/approx_kl", approximate_kl(th.cat(self._log_ratios[self._epoch_start :])).item())
            logger.record("train/clip_fraction", outside.float().mean().item())
        # Before the update: how well the critic does on trajectories that it has not learned from (out of sample)
        logger.record("train/explained_variance", explained_variance(values.flatten(), returns.flatten()))
        # In the last epoch: how well it does on those it has just learned from
        errors = self._values["attention_value_loss"] or self._values["value_loss"]
        variance = float(np.var(returns))
        if errors and variance > 0:
            last_epoch = th.stack(errors[-max(len(errors) // n_epochs, 1) :]).mean().item()
            logger.record("train/explained_variance_in_sample", 1 - last_epoch / variance)
