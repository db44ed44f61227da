"""Samples, log probabilities and entropies are those of SB3's distributions."""

import pytest
import torch as th
from gymnasium import spaces
from sb3_attention_ac.distributions import gaussian_log_prob_and_entropy
from trajectories import make_policy

from sb3_attention_ac.trajectory import encode_actions

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


@pytest.mark.parametrize("squash_output", [False, True])
@pytest.mark.parametrize("n_envs", [1, 8])
@th.no_grad()
def test_samples_of_gsde_are_those_of_sb3(squash_output, n_envs):
    policy = make_policy(4, spaces.Box(-1, 1, (2,)), use_sde=True, squash_output=squash_output)
    latent_pi, latent_sde = th.randn(n_envs, 6), th.randn(n_envs, 6)
    policy.reset_noise(n_envs)
    for latents in (latent_pi, latent_sde):
        expected = policy.action_dist.proba_distribution(policy.action_net(latent_pi), policy.log_std, latents).sample()
        samples = policy.sample_actions(latent_pi, latent_sde=None if latents is latent_pi else latents)
        assert th.equal(samples, expected)
        assert not th.equal(samples, policy.sample_actions(latent_pi, deterministic=True, latent_sde=latents))


@pytest.mark.parametrize(
    "space", [spaces.Discrete(3), spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)], ids=repr
)
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_log_probabilities_and_entropies_are_those_of_sb3(space, scale):
    policy = make_policy(4, space)
    with th.no_grad():
        latent = scale * th.randn(50, 6)  # large ones make some actions impossible
        if isinstance(space, spaces.Box):
            policy.log_std.copy_(th.tensor([0.7, -1.2]))
        distribution = policy._get_action_dist_from_latent(latent)
        actions = distribution.sample()
        log_prob, entropy = policy.log_prob_and_entropy(latent, actions.float())
        assert th.allclose(log_prob, distribution.log_prob(actions), atol=1e-5, rtol=1e-5)
        assert th.allclose(entropy, distribution.entropy(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (1,), (1, 3)])
def test_a_shared_standard_deviation_counts_for_every_dimension(shape):
    mean, actions, log_std = th.randn(5, 3), th.randn(5, 3), th.full(shape, -0.5)
    expected = th.distributions.Normal(mean, th.full((3,), -0.5).exp())
    log_prob, entropy = gaussian_log_prob_and_entropy(mean, log_std, actions)
    assert th.allclose(log_prob, expected.log_prob(actions).sum(-1))
    assert th.allclose(entropy, expected.entropy().sum(-1))


def test_categories_are_encoded_as_torch_does():
    generator = th.Generator().manual_seed(0)
    first, second = (th.randint(n, (4, 5, 1), generator=generator).float() for n in (2, 3))  # as the buffer stores them
    ones = [th.nn.functional.one_hot(part.long().squeeze(-1), n) for part, n in ((first, 2), (second, 3))]
    assert encode_actions(second, spaces.Discrete(3)).equal(ones[1].float())
    assert encode_actions(th.cat([first, second], -1), spaces.MultiDiscrete([2, 3])).equal(th.cat(ones, -1).float())
