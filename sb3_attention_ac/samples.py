"""What comes out of the rollout buffer: a rollout on the device, its transitions, and windows of its trajectories."""

from typing import NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from sb3_attention_ac.trajectory import Obs, TrajectoryWindows, map_obs

NO_EPISODE = -1


class RolloutTensors(NamedTuple):
    """
    A rollout on the device, with the steps before it. R = n_context + 1 + buffer_size rows, E environments.

    :param observations: [R, E, *obs_shape]
    :param actions: [R, E, action_dim]
    :param rewards: [R, E]
    :param episode_starts: [R, E]
    :param episode_ids: [R, E], ``NO_EPISODE`` where nothing has been stored yet
    """

    observations: Obs
    actions: th.Tensor
    rewards: th.Tensor
    episode_starts: th.Tensor
    episode_ids: th.Tensor

    def windows(self, rows: th.Tensor, envs: th.Tensor) -> TrajectoryWindows:
        """
        :param rows: Row of each step, at least 1, [N, W]
        :param envs: Environment of each window, [N, 1]
        :return: N windows of W steps
        """
        return TrajectoryWindows(
            map_obs(lambda obs: obs[rows, envs], self.observations),
            self.actions[rows - 1, envs],
            self.rewards[rows - 1, envs],
            self.episode_starts[rows, envs],
            self.episode_ids[rows, envs],
        )


class WindowSamples(NamedTuple):
    """
    N windows with their context, and what the losses need of their last n steps.

    :param windows: Windows of n_context + n steps
    :param actions: [N, n, action_dim]
    :param old_values: [N, n]
    :param old_log_prob: [N, n]
    :param advantages: [N, n]
    :param returns: [N, n]
    :param offsets: What was added to the parameters of the action distributions, [N, n, n_parameters or 0]
    """

    windows: TrajectoryWindows
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    offsets: th.Tensor


class TransitionSamples(NamedTuple):
    """
    :param transitions: N single transitions
    :param offsets: What was added to the parameters of their action distributions, [N, n_parameters or 0]
    """

    transitions: RolloutBufferSamples
    offsets: th.Tensor
