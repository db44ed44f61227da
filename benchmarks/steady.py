"""
Time of an algorithm without the pauses of the machine, which on a virtual one can be most of the time.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np


class StepTimer:
    """
    Durations of the steps of each rollout, and of the optimizer steps that follow it. Torch is imported only in
    :meth:`learn`: the process that compares the durations has to stay small.
    """

    def __init__(self) -> None:
        self.collecting: list[list[float]] = []
        self.training: list[list[float]] = []
        self._last = 0.0

    def learn(self, model: Any, steps: int) -> None:
        """
        :param model: Model to train further
        :param steps: Number of steps, over all environments
        """
        from torch.optim.optimizer import register_optimizer_step_post_hook

        model.collect_rollouts = self._collecting(type(model).collect_rollouts.__get__(model))
        hook = register_optimizer_step_post_hook(self._optimizer_step)
        try:
            model.learn(steps, callback=self._environment_step, reset_num_timesteps=False)
            self.training[-1].append(self._lap())
        finally:
            hook.remove()
            del model.collect_rollouts  # that of its class again

    def _lap(self) -> float:
        now = time.perf_counter()
        duration, self._last = now - self._last, now
        return duration

    def _collecting(self, collect_rollouts: Callable[..., bool]) -> Callable[..., bool]:
        def timed(*args: Any, **kwargs: Any) -> bool:
            duration = self._lap()
            if self.training:  # ends with what comes after the last optimizer step
                self.training[-1].append(duration)
            self.collecting.append([])
            result = collect_rollouts(*args, **kwargs)
            self.collecting[-1].append(self._lap())
            self.training.append([])
            return result

        return timed

    def _environment_step(self, *_: Any) -> bool:
        self.collecting[-1].append(self._lap())
        return True

    def _optimizer_step(self, *_: Any) -> None:
        self.training[-1].append(self._lap())


def steady_seconds(rollouts: list[list[float]]) -> float:
    """
    The n-th step of a rollout counts with its lower quartile over the rollouts, so pauses of the machine drop out, also for
    steps so long that half of them have one. What happens once in a rollout, such as the estimation of advantages, is compared
    with itself. Resets of environments drop out too.

    :param rollouts: Durations of the steps of each rollout
    :return: Seconds per rollout: the sum, over the steps of a rollout, of the lower quartile of the n-th one
    """
    longest = max(map(len, rollouts), default=0)
    if longest == 0:
        return 0.0
    # Some rollouts have fewer minibatches than others, (n_rollouts, longest)
    durations = np.array([rollout + [np.nan] * (longest - len(rollout)) for rollout in rollouts])
    return float(np.sum(np.nanquantile(durations, 0.25, axis=0) * np.mean(~np.isnan(durations), axis=0)))
