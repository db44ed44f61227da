"""What happened in one update, averaged over its minibatches and written to SB3's logger."""

from collections import defaultdict

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import explained_variance

from sb3_attention_ac.losses import approximate_kl

ATTENTION_KEYS = ("attention_value_loss", "attention_grad_norm")


class TrainLog:
    """
    Collects tensors without reading them: reading one waits for the device.

    :param clip_range: Present clipping parameter, to count what lies outside
    :param logs_attention: Whether what attention adds is used in the values. While an MLP actor's gate is closed its
        diagnostics say nothing about the run, and are not logged; those of Q_att, which has a gate of its own, are
    """

    def __init__(self, clip_range: float, logs_attention: bool = True):
        self.clip_range = clip_range
        self.logs_attention = logs_attention
        self._epoch = 0
        self._values: dict[str, list[tuple[int, th.Tensor]]] = defaultdict(list)  # with the epochs they belong to

    def add(self, name: str, value: th.Tensor) -> None:
        """
        :param name: Key, without "train/"
        :param value: A scalar of one minibatch
        """
        self._values[name].append((self._epoch, value.detach()))

    def add_log_ratio(self, log_ratio: th.Tensor) -> None:
        """:param log_ratio: log pi(a | s) - log pi_old(a | s) of one minibatch"""
        self.add("log_ratio", log_ratio.flatten())

    def start_epoch(self) -> None:
        """Divergence and the variance explained in sample are logged for the last epoch alone."""
        self._epoch += 1

    def last_kl(self) -> float:
        """:return: Approximate KL divergence in the latest minibatch"""
        return approximate_kl(self._values["log_ratio"][-1][1]).item()

    def _last_epoch(self, name: str) -> list[th.Tensor]:
        """What was added in the last epoch in which anything was"""
        collected = self._values[name]
        return [value for epoch, value in collected if epoch == collected[-1][0]]

    def record(self, logger: Logger, values: np.ndarray, returns: np.ndarray) -> None:
        """
        :param logger: SB3's logger
        :param values: V(h_t) before the update, [n_steps, n_envs]
        :param returns: TD(lambda) returns, [n_steps, n_envs]
        """
        log_ratios = self._last_epoch("log_ratio")
        outside = th.abs(th.exp(th.cat([value for _, value in self._values["log_ratio"]])) - 1) > self.clip_range
        for name, collected in self._values.items():
            if name != "log_ratio" and (self.logs_attention or name not in ATTENTION_KEYS):
                logger.record(f"train/{name}", th.stack([value for _, value in collected]).mean().item())
        logger.record("train/approx_kl", approximate_kl(th.cat(log_ratios)).item())
        logger.record("train/clip_fraction", outside.float().mean().item())
        # Before the update: how well the critic does on trajectories that it has not learned from (out of sample)
        logger.record("train/explained_variance", explained_variance(values.flatten(), returns.flatten()))
        # In the last epoch: how well it does on those it has just learned from
        logged = self.logs_attention and "attention_value_loss" in self._values
        errors, variance = self._last_epoch("attention_value_loss" if logged else "value_loss"), float(np.var(returns))
        if variance > 0 and errors:
            logger.record("train/explained_variance_in_sample", 1 - th.stack(errors).mean().item() / variance)
