"""Sampled actions follow the distributions that log probabilities are taken from."""

import pytest
import torch as th
from gymnasium import spaces
from trajectories import make_policy

N = 20_000


@pytest.mark.parametrize(
    "space", [spaces.Discrete(3), spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)], ids=repr
)
def test_samples_follow_the_distribution(space):
    policy = make_policy(4, space)
    latent = th.randn(1, 6).expand(N, 6)
    with th.no_grad():
        samples = policy.sample_actions(latent).float()
        expected = policy._get_action_dist_from_latent(latent).sample().float()
    for moment in (1, 2):
        difference = (samples**moment).mean(0) - (expected**moment).mean(0)
        error = (samples**moment).std(0) * (2 / N) ** 0.5
        assert (difference.abs() < 5 * error + 1e-6).all()
    assert samples.shape == expected.shape
