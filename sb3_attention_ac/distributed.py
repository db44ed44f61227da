"""
One training run on several processes, started by ``torchrun``: each has environments of its own, all have the same parameters.

Gradients are averaged before they are clipped, so that a step is that of one process with all environments. Whatever decides
about the run is that of all processes: advantages are normalized by the statistics of all, gates and ``target_kl`` see the
rollouts of all, statistics of VecNormalize start from those of rank 0 and are merged after each rollout, steps are counted
over all. Rank 0 logs, evaluates and saves. Without ``torchrun`` every function here does nothing.
"""

import atexit
import copy
import importlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch as th
import torch.distributed as dist
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EventCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

RANK_0_ALONE = (CheckpointCallback, EvalCallback, ProgressBarCallback)


def is_launched() -> bool:
    """:return: Whether ``torchrun`` has started this process and others"""
    return dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


def is_silent() -> bool:
    """:return: Whether another process prints what there is to print, also before they have joined"""
    return is_launched() and int(os.environ["RANK"]) > 0


def start(device: th.device) -> None:
    """
    Join the processes that ``torchrun`` has started, if it has.

    :param device: Where the policy is: NCCL connects GPUs, gloo CPUs
    """
    if not is_launched() or dist.is_initialized():
        return
    if device.type == "cuda":
        th.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Imported later, as PyTorch itself does, its functions keep the group as a default argument, and with it threads of gloo:
    # one that drops the last tensor while the interpreter ends aborts the process
    importlib.import_module("torch.distributed.nn")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def is_active() -> bool:
    """:return: Whether there are other processes"""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """:return: Number of this process"""
    return dist.get_rank() if is_active() else 0


def world_size() -> int:
    """:return: Number of processes"""
    return dist.get_world_size() if is_active() else 1


def _device() -> th.device:
    """Where collectives of the current backend work"""
    return th.device("cuda", th.cuda.current_device()) if dist.get_backend() == "nccl" else th.device("cpu")


def _gathered(value: Any) -> list[Any]:
    """:return: The objects of all processes, in the order of their ranks"""
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def require_equal(**values: Any) -> None:
    """
    :param values: What has to be the same in all processes
    :raises ValueError: In all of them, if something is not
    """
    if not is_active():
        return
    for name, found in {name: [values_[name] for values_ in _gathered(values)] for name in values}.items():
        if any(value != found[0] for value in found):
            raise ValueError(f"{name} is {found} on ranks 0 to {len(found) - 1}, but it must be the same on all of them.")


def broadcast(module: th.nn.Module) -> None:
    """
    :param module: Its parameters and buffers become those of rank 0
    :raises ValueError: If it is another network in one of the processes
    """
    if is_active():
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        first, *others = _gathered(shapes)
        for i, other in enumerate(others, start=1):
            if other != first:
                name = next(name for name in [*first, *other] if first.get(name) != other.get(name))
                shape, other_shape = first.get(name, "missing"), other.get(name, "missing")
                raise ValueError(
                    f"The networks differ: {name} is {shape} on rank 0 and {other_shape} on rank {i}. Use the same "
                    "policy_kwargs and environments on all of them."
                )
        for tensor in module.state_dict().values():
            moved = tensor.to(_device())
            dist.broadcast(moved, 0)
            tensor.copy_(moved)


def average_gradients(parameters: Sequence[th.Tensor]) -> None:
    """
    :param parameters: Their gradients become the mean over the processes; one that is missing counts as zeros, unless it is
        missing everywhere
    """
    if not is_active():
        return
    has_gradient = th.tensor([parameter.grad is not None for parameter in parameters], dtype=th.float32)
    parts = [th.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
    flat = th.cat([*parts, has_gradient.to(parts[0].device)])
    dist.all_reduce(flat)
    *averages, has_gradient = flat.split([*(parameter.numel() for parameter in parameters), len(parameters)])
    for parameter, average, anywhere in zip(parameters, averages, has_gradient.tolist(), strict=True):
        if anywhere > 0:
            parameter.grad = average.view_as(parameter) / world_size()


def var_mean(values: th.Tensor) -> tuple[th.Tensor, th.Tensor, int]:
    """
    :param values: [N, D]
    :return: Variance (of a population) and mean over the rows of all processes, [D] each, and the number of rows
    """
    n = len(values)
    if not is_active():
        return *th.var_mean(values, dim=0, correction=0), n
    wide = values.double()  # squares of large means leave enough digits
    sums = th.stack([wide.sum(dim=0), wide.square().sum(dim=0), th.full_like(wide[0], n)])
    dist.all_reduce(sums)  # one message: on a CPU its latency is what it costs
    mean, n = sums[0] / sums[2], int(sums[2, 0])
    return (sums[1] / n - mean.square()).clamp(min=0.0).to(values.dtype), mean.to(values.dtype), n


def std_mean(values: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    :param values: [N]
    :return: Standard deviation (of a sample) and mean over the values of all processes
    """
    if not is_active():
        return th.std_mean(values)
    var, mean, n = var_mean(values.reshape(-1, 1))
    return (var * (n / (n - 1))).sqrt().squeeze(), mean.squeeze()


def averaged(count: th.Tensor) -> th.Tensor:
    """
    :param count: How many terms a sum has in this process
    :return: Mean over the processes: with it as divisor, the average of their gradients is that of the mean of all terms
    """
    if not is_active():
        return count
    total = count.double()
    dist.all_reduce(total)
    return total / world_size()


def mean(value: float) -> float:
    """:return: Mean over the processes"""
    return float(np.mean(_gathered(value))) if is_active() else value


def all_agree(agrees: bool) -> bool:
    """:return: Whether all processes say so"""
    return all(_gathered(agrees)) if is_active() else agrees


def maximum(number: int) -> int:
    """:return: The largest of all processes"""
    return max(_gathered(number)) if is_active() else number


def of_all_envs(array: np.ndarray) -> np.ndarray:
    """
    :param array: [n_steps, n_envs]
    :return: Those of all processes side by side, [n_steps, world_size * n_envs]
    """
    return np.concatenate(_gathered(array), axis=1) if is_active() else array


def require_identical(parameters: Iterable[th.Tensor]) -> None:
    """
    :param parameters: Have to be the same in all processes, to the last bit
    :raises RuntimeError: In all of them, if they are not
    """
    if not is_active():
        return
    flat = th.cat([parameter.detach().flatten() for parameter in parameters]).view(th.int32).long()
    weights = th.arange(1, len(flat) + 1, device=flat.device)  # the order counts
    found = _gathered(int((flat * weights).sum()))
    if len(set(found)) > 1:
        raise RuntimeError(
            f"The parameters of ranks 0 to {len(found) - 1} are no longer the same. Something changes them in one process "
            "alone: a callback, or a random number that a loss of your own draws."
        )


class ProgressOfAll(ProgressBarCallback):
    """SB3's progress bar, which counts the environments of this process alone; here those of all."""

    def _on_step(self) -> bool:
        """:return: True"""
        self.pbar.update(self.training_env.num_envs * world_size())
        return True


def callbacks_of(callback: Any, progress_bar: bool = False) -> Any:
    """
    :param callback: What ``learn`` was given
    :param progress_bar: Whether to add a progress bar
    :return: The same, but those that evaluate, save or show progress on rank 0 alone, where progress bars count the steps of
        all. Without other processes what was given
    """
    if not is_active():
        return callback
    if callable(callback) and not isinstance(callback, BaseCallback):
        callback = ConvertCallback(callback)
    kept: list[BaseCallback] = []
    for one in callback if isinstance(callback, list) else [callback] if callback is not None else []:
        if isinstance(one, RANK_0_ALONE) and rank() > 0:
            continue
        if isinstance(one, CallbackList):
            one.callbacks = callbacks_of(one.callbacks)
        if isinstance(one, EventCallback):
            one.callback = next(iter(callbacks_of(one.callback)), None)
        if type(one) is ProgressBarCallback:
            one.__class__ = ProgressOfAll  # the object itself: the script may hold it, as RL Zoo's does
        kept.append(one)
    return [*kept, ProgressOfAll()] if progress_bar and rank() == 0 else kept


class MergedStatistics:
    """
    Statistics of VecNormalize over the environments of all processes: each goes on from the same ones during a rollout, what
    each has seen is put together after it.

    :param env: The wrapper; None for nothing
    """

    def __init__(self, env: VecNormalize | None):
        self.statistics: list[RunningMeanStd] = []
        if env is not None and is_active():
            observations = env.obs_rms if env.norm_obs else {}
            parts = list(observations.values()) if isinstance(observations, dict) else [observations]
            self.statistics = [*parts, env.ret_rms]
        self._before = copy.deepcopy(self.statistics)

    def start_from_first(self) -> None:
        """
        Go on from those of rank 0, as parameters do: what each has seen before is not merged, it may be partly the same.

        :raises ValueError: If another process normalizes something else
        """
        if not is_active():
            return
        found = _gathered([(own.mean, own.var, own.count) for own in self.statistics])
        shapes = [[np.shape(mean) for mean, _, _ in statistics] for statistics in found]
        if any(other != shapes[0] for other in shapes):
            raise ValueError(
                f"VecNormalize has statistics of shapes {shapes} on ranks 0 to {len(shapes) - 1}, but they must be the same "
                "on all of them."
            )
        for own, (mean, var, count) in zip(self.statistics, found[0], strict=True):
            own.mean, own.var, own.count = mean, var, count
        self._before = copy.deepcopy(self.statistics)

    def merge(self) -> None:
        """Put together what all have seen since the last time."""
        for own, before in zip(self.statistics, self._before, strict=True):
            seen = own.count - before.count
            if seen == 0:
                moments = (np.zeros_like(own.mean), np.zeros_like(own.var), 0.0)
            else:
                batch_mean = (own.mean * own.count - before.mean * before.count) / seen
                between = np.square(batch_mean - before.mean) * before.count * seen / own.count
                moments = (batch_mean, (own.var * own.count - before.var * before.count - between) / seen, seen)
            own.mean, own.var, own.count = before.mean.copy(), before.var.copy(), before.count
            for batch_mean, batch_var, count in _gathered(moments):
                if count > 0:
                    own.update_from_moments(batch_mean, np.maximum(batch_var, 0.0), count)
        self._before = copy.deepcopy(self.statistics)
