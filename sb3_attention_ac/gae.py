"""Generalized advantage estimation (Schulman et al. 2016, https://arxiv.org/abs/1506.02438)."""

import numpy as np


def generalized_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    last_values: np.ndarray,
    episode_starts: np.ndarray,
    dones: np.ndarray,
    gamma: float,
    gae_lambda: float,
) -> np.ndarray:
    """
    A_t = sum over k of (gamma * lambda)^k * (r_{t+k} + gamma V_{t+k+1} - V_{t+k}), up to the end of the episode. With
    lambda = 0 this is the TD error, with lambda = 1 the discounted return less the value.

    :param rewards: [n_steps, n_envs]; where a time limit cut an episode off, plus the discounted value of its last observation
    :param values: V_t, [n_steps, n_envs]
    :param last_values: Values of the observations after the last step, [n_envs]
    :param episode_starts: Whether a step is the first of its episode, [n_steps, n_envs]
    :param dones: Whether the last step ended an episode, [n_envs]
    :param gamma: Discount factor
    :param gae_lambda: lambda, bias against variance
    :return: Advantages, [n_steps, n_envs]
    """
    goes_on = 1.0 - np.concatenate([episode_starts[1:], np.asarray(dones, dtype=np.float32)[None]])
    next_values = np.concatenate([values[1:], last_values[None]])
    errors = rewards + gamma * next_values * goes_on - values
    advantages = np.zeros_like(values)
    advantage = np.zeros_like(values[0])
    for step in reversed(range(len(values))):
        advantage = errors[step] + gamma * gae_lambda * goes_on[step] * advantage
        advantages[step] = advantage
    return advantages
