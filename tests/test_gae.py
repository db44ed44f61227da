"""Generalized advantages are a sum over the rest of each episode, and SB3's."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_attention_ac.gae import generalized_advantages


def naive(rewards, values, last_values, episode_starts, dones, gamma, lam) -> np.ndarray:
    """Every advantage as a sum over the rest of its own episode, step by step"""
    n_steps, n_envs = rewards.shape
    advantages = np.zeros_like(values)
    for env in range(n_envs):
        for t in range(n_steps):
            weight = 1.0
            for k in range(t, n_steps):
                is_last = k == n_steps - 1
                ended = dones[env] if is_last else episode_starts[k + 1, env]
                next_value = 0.0 if ended else last_values[env] if is_last else values[k + 1, env]
                advantages[t, env] += weight * (rewards[k, env] + gamma * next_value - values[k, env])
                weight *= gamma * lam
                if ended:
                    break
    return advantages


def random_rollout(seed: int, n_steps: int, n_envs: int, episode_end: float):
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, n_steps, n_envs)).astype(np.float32)
    starts = (rng.random((n_steps, n_envs)) < episode_end).astype(np.float32)
    last_values = rng.normal(size=n_envs).astype(np.float32)
    return rewards, values, last_values, starts, rng.random(n_envs) < episode_end


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize(
    ("seed", "n_steps", "n_envs", "episode_end"), [(0, 9, 3, 0.2), (1, 13, 1, 0.0), (2, 5, 2, 1.0), (3, 1, 2, 0.5)]
)
def test_a_sum_over_the_rest_of_the_episode_and_sb3s(seed, n_steps, n_envs, episode_end, gamma, lam):
    rewards, values, last_values, starts, dones = random_rollout(seed, n_steps, n_envs, episode_end)
    advantages = generalized_advantages(rewards, values, last_values, starts, dones, gamma, lam)
    assert advantages.shape == (n_steps, n_envs) and advantages.dtype == np.float32
    expected = naive(rewards, values, last_values, starts, dones, gamma, lam)
    np.testing.assert_allclose(advantages, expected, rtol=1e-4, atol=1e-4)
    sb3 = RolloutBuffer(n_steps, spaces.Box(-1, 1, (1,)), spaces.Discrete(2), "cpu", lam, gamma, n_envs)
    nothing = np.zeros((n_envs, 1))
    for t in range(n_steps):
        sb3.add(nothing, nothing, rewards[t], starts[t], th.as_tensor(values[t]), th.zeros(n_envs))
    sb3.compute_returns_and_advantage(th.as_tensor(last_values), dones)
    np.testing.assert_allclose(advantages, sb3.advantages, rtol=1e-5, atol=1e-5)


def test_three_steps_by_hand():
    """gamma 1/2, lambda 1/2: errors of 1 + 2 - 2, 2 + 0 - 4 (the episode ends) and 3 + 4 - 6"""
    args = np.array([[1.0], [2.0], [3.0]]), np.array([[2.0], [4.0], [6.0]]), np.array([8.0])
    starts = np.array([[1.0], [0.0], [1.0]])
    advantages = generalized_advantages(*args, starts, np.array([False]), 0.5, 0.5)
    assert advantages.tolist() == [[1 - 2 / 4], [-2], [1]]
    advantages = generalized_advantages(*args, starts, np.array([True]), 0.5, 0.5)
    assert advantages.tolist() == [[0.5], [-2], [-3]]


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_both_ends(lam):
    """lambda = 0 gives the TD error, lambda = 1 the discounted return less the value."""
    rewards, values, last_values, starts, dones = random_rollout(0, 6, 2, 0.0)
    advantages = generalized_advantages(rewards, values, last_values, starts, dones, 0.9, lam)
    after = np.concatenate([values[1:], last_values[None]])
    if lam == 0:
        np.testing.assert_allclose(advantages, rewards + 0.9 * after - values, rtol=1e-5, atol=1e-6)
    else:
        returns, expected = last_values, np.zeros_like(values)
        for t in reversed(range(6)):
            expected[t] = returns = rewards[t] + 0.9 * returns
        np.testing.assert_allclose(advantages, expected - values, rtol=1e-5, atol=1e-5)


def test_arguments_stay_as_they_are():
    arguments = random_rollout(0, 6, 2, 0.3)
    before = [array.copy() for array in arguments]
    generalized_advantages(*arguments, 0.9, 0.9)
    assert all(map(np.array_equal, arguments, before))
