"""Samples, log probabilities and entropies are those of SB3's distributions, with masks those of contrib's."""

import itertools
import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import make_masked_proba_distribution
from stable_baselines3.common.distributions import StateDependentNoiseDistribution, make_proba_distribution
from trajectories import make_policy, random_masks

from sb3_attention_ac.networks.distributions import (
    Categoricals,
    DiagonalGaussian,
    StateDependentNoise,
    as_sb3_distribution,
    check_masks,
    make_action_distribution,
)
from sb3_attention_ac.type_aliases import ActionParameters

N = 20_000
DISCRETE = [
    spaces.Discrete(3),
    spaces.Discrete(3, start=5),
    spaces.MultiDiscrete([2, 4, 3]),
    spaces.MultiDiscrete([3, 3]),
    spaces.MultiBinary(3),
    spaces.MultiBinary((2, 2)),
]
BOX = spaces.Box(-1, 1, (2,))
N_PARAMETERS = [3, 3, 9, 6, 3, 4]
SIZES = [[3], [3], [2, 4, 3], [3, 3], [2, 2, 2], [2, 2, 2, 2]]
discrete = pytest.mark.parametrize(("space", "n_parameters"), list(zip(DISCRETE, N_PARAMETERS, strict=True)), ids=repr)


def parameters_of(n_parameters: int, n: int = 50, scale: float = 1.0) -> th.Tensor:
    return scale * th.randn((n, n_parameters), generator=th.Generator().manual_seed(0))


def contribs_logits(space, logits: th.Tensor) -> th.Tensor:
    """Of a bit contrib has two, ours the second less the first"""
    if not isinstance(space, spaces.MultiBinary):
        return logits
    return th.stack([th.zeros_like(logits), logits], dim=-1).flatten(1)


def sb3s(space):
    """SB3 refuses MultiBinary of several dimensions, but knows their number of bits"""
    return make_proba_distribution(spaces.MultiBinary(4) if space.shape == (2, 2) else space)


# --- categories ---


@pytest.mark.parametrize(("space", "sizes"), list(zip(DISCRETE, SIZES, strict=True)), ids=repr)
def test_groups(space, sizes):
    distribution = Categoricals(space)
    assert (distribution.sizes, distribution.most, distribution.mask_dim) == (sizes, max(sizes), sum(sizes))
    assert distribution.is_binary == isinstance(space, spaces.MultiBinary)


@discrete
@pytest.mark.parametrize("scale", [1.0, 1e3])  # large ones make some actions impossible
def test_log_probabilities_entropies_and_modes_are_those_of_sb3(space, n_parameters, scale):
    given = ActionParameters(parameters_of(n_parameters, scale=scale))
    expected = sb3s(space).proba_distribution(given.parameters)
    distribution = Categoricals(space)
    for actions in (expected.sample(), expected.mode()):
        log_prob, entropy = distribution.log_prob_and_entropy(given, actions.float().reshape(50, -1))
        th.testing.assert_close(log_prob, expected.log_prob(actions), rtol=1e-6, atol=1e-6)
        th.testing.assert_close(entropy, expected.entropy(), rtol=1e-6, atol=1e-6)
    modes, log_prob = distribution.sample(given, deterministic=True)
    assert th.equal(modes.float(), expected.mode().reshape(50, -1).float())
    th.testing.assert_close(log_prob, expected.log_prob(expected.mode()), rtol=1e-6, atol=1e-6)


@discrete
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_with_masks_they_are_contribs(space, n_parameters, scale):
    distribution = Categoricals(space)
    masks = random_masks(space, np.random.default_rng(0), 50)
    assert masks.shape == (50, distribution.mask_dim) and not masks.all()
    given = ActionParameters(parameters_of(n_parameters, scale=scale), None, masks)
    flat = spaces.MultiBinary(4) if space.shape == (2, 2) else space
    expected = make_masked_proba_distribution(flat)
    expected.proba_distribution(contribs_logits(space, given.parameters))
    expected.apply_masking(masks.numpy())
    for actions in (expected.sample(), expected.mode()):
        log_prob, entropy = distribution.log_prob_and_entropy(given, actions.float().reshape(50, -1))
        th.testing.assert_close(log_prob, expected.log_prob(actions), rtol=1e-6, atol=1e-6 * scale)
        th.testing.assert_close(entropy, expected.entropy(), rtol=1e-6, atol=1e-6 * scale)
    modes, log_prob = distribution.sample(given, deterministic=True)
    assert th.equal(modes, expected.mode().reshape(50, -1))
    th.testing.assert_close(log_prob, expected.log_prob(expected.mode()), rtol=1e-6, atol=1e-6 * scale)


def frequencies(samples: th.Tensor, sizes: list[int]) -> th.Tensor:
    """How often each joint action was drawn, [product of sizes]"""
    flat = th.zeros(len(samples), dtype=th.long)
    for column, size in zip(samples.T, sizes, strict=True):
        flat = flat * size + column.long()
    return th.bincount(flat, minlength=math.prod(sizes)) / len(samples)


@discrete
@pytest.mark.parametrize("masked", [False, True])
def test_samples_follow_the_probabilities(space, n_parameters, masked):
    th.manual_seed(0)
    distribution, n_samples = Categoricals(space), N
    masks = random_masks(space, np.random.default_rng(1), 1) if masked else None
    every = th.tensor(list(itertools.product(*map(range, distribution.sizes)))).float()

    def repeated(n: int) -> ActionParameters:
        parameters = parameters_of(n_parameters, 1).expand(n, -1)
        return ActionParameters(parameters, None, None if masks is None else masks.expand(n, -1))

    probabilities = distribution.log_prob_and_entropy(repeated(len(every)), every)[0].exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    given = repeated(n_samples)
    actions, log_prob = distribution.sample(given)
    assert th.equal(log_prob, distribution.log_prob_and_entropy(given, actions.float())[0])
    drawn = frequencies(actions, distribution.sizes)
    assert ((drawn - probabilities).abs() <= 5 * (probabilities / n_samples).sqrt() + 1e-9).all()


@discrete
@pytest.mark.parametrize("deterministic", [False, True])
def test_what_is_masked_is_never_taken(space, n_parameters, deterministic):
    """Even where it is all that the logits would take, and the noise is as it likes"""
    distribution, rng = Categoricals(space), np.random.default_rng(0)
    masks = random_masks(space, rng, 2_000)
    logits = parameters_of(n_parameters, 2_000)
    if not distribution.is_binary:
        logits = th.where(masks, -1e12, 1e12) + logits
    else:
        logits = 1e12 * logits
    actions, _ = distribution.sample(ActionParameters(logits, None, masks), deterministic)
    for column, part in zip(actions.T, masks.split(distribution.sizes, dim=1), strict=True):
        assert part.gather(1, column.unsqueeze(1)).all()


def test_noise_without_bounds_takes_nothing_masked(monkeypatch):
    """The smallest exponential numbers make the largest noise: here each masked action has it."""
    masks = th.tensor([[True, False, True, True, False]])
    monkeypatch.setattr(th.Tensor, "exponential_", lambda self: self.copy_(th.tensor([[[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]])))
    distribution = Categoricals(spaces.MultiDiscrete([2, 3]))
    actions, log_prob = distribution.sample(ActionParameters(th.zeros(1, 5), None, masks))
    assert actions[0, 0] == 0 and actions[0, 1] in (0, 1)
    assert log_prob.tolist() == pytest.approx([-math.log(2)])


def test_gumbel_noise_decides(monkeypatch):
    """argmax of log p - log e, e exponential: with e = p, 2 p, p, ... the second category loses."""
    logits = th.tensor([[0.0, 1.0, 2.0]])
    p = logits.softmax(-1)
    distribution = Categoricals(spaces.Discrete(3))
    for winner in range(3):
        noise = (p * th.where(th.arange(3) == winner, 0.99, 1.0)).unsqueeze(1)
        monkeypatch.setattr(th.Tensor, "exponential_", lambda self, noise=noise: self.copy_(noise))
        actions, log_prob = distribution.sample(ActionParameters(logits))
        assert actions.tolist() == [[winner]] and log_prob.tolist() == pytest.approx([p[0, winner].log().item()])


def test_one_hot_and_grouped():
    distribution = Categoricals(spaces.MultiDiscrete([2, 3]))
    assert distribution.one_hot(th.tensor([[1.0, 2.0], [0.0, 1.0]])).tolist() == [
        [[0, 1, 0], [0, 0, 1]],
        [[1, 0, 0], [0, 1, 0]],
    ]
    assert distribution.grouped(th.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])).tolist() == [[[1, 2, 0], [3, 4, 5]]]
    assert Categoricals(spaces.MultiBinary(2)).grouped(th.tensor([[7.0, 8.0]])).tolist() == [[[0, 7], [0, 8]]]
    assert Categoricals(spaces.MultiDiscrete([2, 2])).grouped(th.arange(4.0)[None]).tolist() == [[[0, 1], [2, 3]]]


@discrete
def test_gradients_are_finite(space, n_parameters):
    """Of filled-up groups and of masked actions alike"""
    masks = random_masks(space, np.random.default_rng(0), 50)
    logits = parameters_of(n_parameters).requires_grad_()
    distribution = Categoricals(space)
    for given in (ActionParameters(logits), ActionParameters(logits, None, masks)):
        actions, _ = distribution.sample(given)
        log_prob, entropy = distribution.log_prob_and_entropy(given, actions.float())
        (log_prob + entropy).sum().backward()
        assert th.isfinite(logits.grad).all() and logits.grad.abs().sum() > 0


# --- a Gaussian ---


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_a_gaussian_is_sb3s(scale):
    log_std = th.tensor([0.7, -1.2])
    given = ActionParameters(parameters_of(2, scale=scale), log_std=log_std)
    expected = make_proba_distribution(BOX).proba_distribution(given.parameters, log_std)
    actions = expected.sample()
    log_prob, entropy = DiagonalGaussian().log_prob_and_entropy(given, actions)
    th.testing.assert_close(log_prob, expected.log_prob(actions), rtol=1e-5, atol=1e-5)
    th.testing.assert_close(entropy, expected.entropy(), rtol=1e-6, atol=1e-6)
    mode, log_prob = DiagonalGaussian().sample(given, deterministic=True)
    assert th.equal(mode, given.parameters)
    th.testing.assert_close(log_prob, expected.log_prob(given.parameters))


def test_samples_of_a_gaussian_follow_it():
    th.manual_seed(0)
    log_std = th.tensor([0.7, -1.2])
    given = ActionParameters(th.tensor([[1.0, -2.0]]).expand(N, -1), log_std=log_std)
    samples, log_prob = DiagonalGaussian().sample(given)
    th.testing.assert_close(log_prob, DiagonalGaussian().log_prob_and_entropy(given, samples)[0])
    std = log_std.exp()
    assert ((samples.mean(0) - th.tensor([1.0, -2.0])).abs() < 5 * std / N**0.5).all()
    assert ((samples.std(0) / std - 1).abs() < 0.03).all()
    assert np.corrcoef(samples.T.numpy())[0, 1] == pytest.approx(0, abs=0.04)


@pytest.mark.parametrize("shape", [(), (1,), (1, 3)])
def test_a_shared_standard_deviation_counts_for_every_dimension(shape):
    mean, actions, log_std = th.randn(5, 3), th.randn(5, 3), th.full(shape, -0.5)
    expected = th.distributions.Normal(mean, th.full((3,), -0.5).exp())
    log_prob, entropy = DiagonalGaussian().log_prob_and_entropy(ActionParameters(mean, log_std=log_std), actions)
    th.testing.assert_close(log_prob, expected.log_prob(actions).sum(-1))
    th.testing.assert_close(entropy, expected.entropy().sum(-1))


# --- gSDE ---


def gsde(squash: bool, learn_features: bool = False, **kwargs) -> tuple[StateDependentNoise, th.Tensor]:
    noise = StateDependentNoiseDistribution(2, squash_output=squash, learn_features=learn_features, **kwargs)
    _, log_std = noise.proba_distribution_net(6, latent_sde_dim=6, log_std_init=-0.3)
    change = th.randn(log_std.shape, generator=th.Generator().manual_seed(1))
    return StateDependentNoise(noise), log_std.detach() + 0.1 * change


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("options", [{}, {"learn_features": True}, {"full_std": False}, {"use_expln": True}])
def test_gsde_is_sb3s(squash, options):
    distribution, log_std = gsde(squash, **options)
    given = ActionParameters(parameters_of(2, 8), parameters_of(6, 8), None, log_std)
    distribution.noise.sample_weights(log_std, batch_size=8)
    expected = distribution.noise.proba_distribution(given.parameters, log_std, given.latent_sde)
    actions, of_sample = distribution.sample(given)
    assert th.equal(actions, expected.sample())
    mode, of_mode = distribution.sample(given, deterministic=True)
    assert th.equal(mode, expected.mode())
    th.testing.assert_close(of_sample, expected.log_prob(actions), rtol=1e-5, atol=1e-5)
    th.testing.assert_close(of_mode, expected.log_prob(mode), rtol=1e-5, atol=1e-5)
    assert not th.equal(actions, expected.mode())
    log_prob, entropy = distribution.log_prob_and_entropy(given, actions)
    th.testing.assert_close(log_prob, expected.log_prob(actions), rtol=1e-5, atol=1e-5)
    if squash:
        assert entropy is None and expected.entropy() is None
        assert actions.abs().max() <= 1
    else:
        th.testing.assert_close(entropy, expected.entropy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("learn_features", [False, True])
def test_noise_teaches_its_features_only_where_asked_for(learn_features):
    distribution, log_std = gsde(False, learn_features)
    log_std.requires_grad_()
    latent = parameters_of(6, 8).requires_grad_()
    given = ActionParameters(parameters_of(2, 8).requires_grad_(), latent, None, log_std)
    distribution.log_prob_and_entropy(given, th.zeros(8, 2))[0].sum().backward()
    assert (latent.grad is not None) == learn_features
    assert log_std.grad.abs().sum() > 0 and given.parameters.grad.abs().sum() > 0


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("n_envs", [1, 8])
@th.no_grad()
def test_a_policys_samples_of_gsde_are_those_of_sb3(squash, n_envs):
    policy = make_policy(4, BOX, use_sde=True, squash_output=squash)
    latent_pi, latent_sde = th.randn(n_envs, 6), th.randn(n_envs, 6)
    policy.reset_noise(n_envs)
    for latents in (latent_pi, latent_sde):
        expected = policy.action_dist.proba_distribution(policy.action_net(latent_pi), policy.log_std, latents).sample()
        given = policy.action_parameters(latent_pi, None if latents is latent_pi else latents)
        samples, _ = policy.distribution.sample(given)
        assert th.equal(samples, expected)
        assert not th.equal(samples, policy.distribution.sample(given, deterministic=True)[0])


# --- which one, and as SB3's ---


@discrete
@pytest.mark.parametrize("masked", [False, True])
def test_the_log_barrier_is_a_divergence_from_uniform(space, n_parameters, masked):
    distribution = Categoricals(space)
    masks = random_masks(space, np.random.default_rng(0), 50) if masked else None
    given = ActionParameters(parameters_of(n_parameters), None, masks)
    logits = contribs_logits(space, given.parameters)
    expected = th.zeros(50)
    ends = np.cumsum(distribution.sizes)
    for row, (end, size) in itertools.product(range(50), zip(ends, distribution.sizes, strict=True)):
        group = slice(end - size, end)
        allowed = logits[row, group] if masks is None else logits[row, group][masks[row, group]]
        uniform = th.distributions.Categorical(logits=th.zeros_like(allowed))
        expected[row] += th.distributions.kl_divergence(uniform, th.distributions.Categorical(logits=allowed))
    th.testing.assert_close(distribution.log_barrier(given), expected, rtol=1e-5, atol=1e-5)


def test_the_log_barrier_pulls_where_the_entropy_does_not():
    logits = th.tensor([[30.0, 0.0, 0.0, -math.inf]], requires_grad=True)  # a network's own way to forbid the last one
    distribution, given = Categoricals(spaces.Discrete(4)), ActionParameters(logits)
    (gradient,) = th.autograd.grad(distribution.log_barrier(given).sum(), logits)
    th.testing.assert_close(gradient, th.tensor([[2 / 3, -1 / 3, -1 / 3, 0.0]]))
    (gradient,) = th.autograd.grad(distribution.log_prob_and_entropy(given, th.zeros(1, 1))[1].sum(), logits)
    assert gradient.nan_to_num().abs().max() < 1e-6


def test_which_distribution():
    assert all(isinstance(make_action_distribution(space, sb3s(space)), Categoricals) for space in DISCRETE)
    assert isinstance(make_action_distribution(BOX, make_proba_distribution(BOX)), DiagonalGaussian)
    with_noise = make_proba_distribution(BOX, use_sde=True, dist_kwargs={"use_expln": False})
    made = make_action_distribution(BOX, with_noise)
    assert isinstance(made, StateDependentNoise) and made.noise is with_noise


@discrete
@pytest.mark.parametrize("masked", [False, True])
def test_as_sb3s_distribution(space, n_parameters, masked):
    space = spaces.MultiBinary(4) if space.shape == (2, 2) else space  # contrib knows no others
    masks = random_masks(space, np.random.default_rng(0), 50) if masked else None
    given = ActionParameters(parameters_of(n_parameters), None, masks)
    made = as_sb3_distribution(given, make_proba_distribution(space), space)
    assert hasattr(made, "apply_masking") == masked
    actions = made.sample()
    log_prob, entropy = Categoricals(space).log_prob_and_entropy(given, actions.float().reshape(50, -1))
    th.testing.assert_close(made.log_prob(actions), log_prob, rtol=1e-5, atol=1e-5)
    th.testing.assert_close(made.entropy(), entropy, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use_sde", [False, True])
def test_a_box_as_sb3s_distribution(use_sde):
    ours, log_std = gsde(False) if use_sde else (DiagonalGaussian(), th.tensor([0.7, -1.2]))
    given = ActionParameters(parameters_of(2, 8), parameters_of(6, 8) if use_sde else None, None, log_std)
    made = as_sb3_distribution(given, ours.noise if use_sde else make_proba_distribution(BOX), BOX)
    actions = th.randn(8, 2)
    th.testing.assert_close(made.log_prob(actions), ours.log_prob_and_entropy(given, actions)[0])


# --- masks as they are given ---


@pytest.mark.parametrize(
    "given",
    [
        np.array([[1, 0, 1], [0, 0, 1]]),
        [[True, False, True], [False, False, True]],
        th.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]),
        np.array([1, 0, 1, 0, 0, 1]),
        np.array([[[True, False, True]], [[False, False, True]]]),
    ],
)
def test_masks_of_any_shape_and_type(given):
    masks = check_masks(given, Categoricals(spaces.Discrete(3)), 2, th.device("cpu"))
    assert masks.dtype == th.bool and masks.tolist() == [[True, False, True], [False, False, True]]


def test_masks_of_another_size():
    message = r"action_masks has shape \(3,\), but 2 observation\(s\) with 3 possible actions need \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        check_masks(np.ones(3), Categoricals(spaces.Discrete(3)), 2, th.device("cpu"))


@pytest.mark.parametrize("masks", [[[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]])
def test_masks_that_allow_nothing(masks):
    """In one of the groups"""
    with pytest.raises(ValueError, match="The action mask of environment 1 allows no action"):
        check_masks(masks, Categoricals(spaces.MultiDiscrete([2, 3])), 2, th.device("cpu"))


def test_a_box_knows_no_masks():
    with pytest.raises(ValueError, match="Action masks are for Discrete, MultiDiscrete and MultiBinary actions"):
        check_masks(np.ones((1, 2)), DiagonalGaussian(), 1, th.device("cpu"))
