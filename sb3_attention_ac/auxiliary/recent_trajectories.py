"""The most recent trajectories, prior rollouts included: what the self-supervised loss draws from."""

from collections import deque
from typing import NamedTuple

import numpy as np
import torch as th

from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.step_storage import RolloutTensors
from sb3_attention_ac.type_aliases import AuxiliaryBatch


class PastRollout(NamedTuple):
    """
    :param rollout: Raw steps, R rows of E environments
    :param returns: Return-to-go of the steps of the rollout itself, [n_steps, E]
    :param recency: For each step, how many trajectories of the same rollout ended after its own, [n_steps, E]
    :param n_trajectories: Number of trajectories in the rollout
    """

    rollout: RolloutTensors
    returns: th.Tensor
    recency: th.Tensor
    n_trajectories: int


def trajectory_recency(episode_ids: np.ndarray) -> tuple[np.ndarray, int]:
    """
    Number the trajectories of a rollout from the one that ended last. A trajectory is a stretch of one episode inside one
    rollout: it runs to a terminal state or to the rollout's end.

    :param episode_ids: [n_steps, n_envs], not decreasing along the steps
    :return: the number of each step's trajectory, 0 for the latest, [n_steps, n_envs], and how many trajectories there are
    """
    n_steps, n_envs = episode_ids.shape
    local = episode_ids - episode_ids[0]  # 0, 1, ... in each environment
    most = int(local.max()) + 1
    flat = local + most * np.arange(n_envs)
    ends = np.full(most * n_envs, -1)
    np.maximum.at(ends, flat, np.broadcast_to(np.arange(n_steps)[:, None], flat.shape))
    rank = np.empty(len(ends), dtype=np.int64)
    rank[np.argsort(-ends, kind="stable")] = np.arange(len(ends))
    return rank[flat], int((ends >= 0).sum())


class RecentTrajectories:
    """
    :param n_trajectories: How many of the most recent trajectories to draw from; 0 for those of the last rollout
    """

    def __init__(self, n_trajectories: int):
        self.n_trajectories = n_trajectories
        self._past: deque[PastRollout] = deque()

    def add(self, buffer: TrajectoryRolloutBuffer) -> None:
        """
        Add a rollout, and forget those that no longer hold one of the most recent trajectories.

        :param buffer: Full, with returns
        """
        recency, count = trajectory_recency(buffer.episode_ids)
        returns = th.as_tensor(buffer.returns, device=buffer.device)
        self._past.append(PastRollout(buffer.tensors(), returns, th.as_tensor(recency, device=buffer.device), count))
        while len(self._past) > 1 and sum(past.n_trajectories for past in list(self._past)[1:]) >= self.n_trajectories:
            self._past.popleft()

    def sample(self, n_windows: int, length: int) -> AuxiliaryBatch:
        """
        Draw windows: a rollout with a chance in proportion to its trajectories in reach, then windows around steps of these.

        :param n_windows: How many, N
        :param length: Steps in each, W; shortened to the rollout's
        :return: N windows
        """
        reach = self.n_trajectories or self._past[-1].n_trajectories
        newer = np.cumsum([0] + [past.n_trajectories for past in reversed(self._past)])[:-1][::-1]
        in_reach = np.clip(reach - newer, 0, [past.n_trajectories for past in self._past])
        choice = int(np.random.choice(len(self._past), p=in_reach / in_reach.sum()))
        past = self._past[choice]
        n_steps = len(past.returns)
        length = min(length, n_steps)
        device = past.returns.device
        eligible = past.recency < int(in_reach[choice])  # [n_steps, E]
        around = eligible.cpu().numpy().nonzero()
        pick = np.random.randint(0, len(around[0]), size=n_windows)
        first = (around[0][pick] - np.random.randint(0, length, size=n_windows)).clip(0, n_steps - length)
        start, env = (th.as_tensor(index, device=device).unsqueeze(1) for index in (first, around[1][pick]))  # [N, 1]
        steps = start + th.arange(length, device=device)  # [N, W]
        rows = steps + past.rollout.rewards.shape[0] - n_steps
        return AuxiliaryBatch(
            past.rollout.windows(rows, env),
            past.rollout.actions[rows, env],
            past.rollout.rewards[rows, env],
            past.returns[steps, env],
            eligible[steps, env],
        )
