"""Targets of any scale are learned alike."""

import pytest
import torch as th

from sb3_attention_ac.auxiliary.normalization import TargetNormalizer

SCALES = [1e-6, 1e-3, 1.0, 1e6]


def targets(seed: int = 0) -> th.Tensor:
    return th.randn(6, 7, 2, generator=th.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_zero_mean_and_unit_variance_whatever_the_scale(scale, mean):
    normalized = TargetNormalizer(2)(scale * (targets() + mean))
    assert normalized.shape == (6, 7, 2)
    th.testing.assert_close(normalized.mean((0, 1)), th.zeros(2), atol=1e-5, rtol=0)
    th.testing.assert_close(normalized.std((0, 1), correction=0), th.ones(2), atol=1e-3, rtol=0)


def test_each_column_by_its_own_statistics():
    x = targets()
    scaled = th.stack([1e-6 * x[..., 0], 1e4 * x[..., 1] + 5e4], dim=-1)
    expected = (x - x.mean((0, 1))) / x.std((0, 1), correction=0)
    th.testing.assert_close(TargetNormalizer(2)(scaled), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("constant", [0.0, 1e-6, 1.0, 0.1, 12345.678])
def test_a_constant_is_zero_and_not_magnified_rounding(constant):
    normalizer = TargetNormalizer(1)
    for _ in range(5):
        assert normalizer(th.full((8, 9, 1), constant)).abs().max() < 0.5  # rounding of the mean is within its epsilon
    normalizer.eval()
    assert th.isfinite(normalizer(th.full((8, 9, 1), constant))).all()


def test_running_statistics_are_those_of_batch_norm():
    ours, theirs = TargetNormalizer(2), th.nn.BatchNorm1d(2, affine=False, eps=1e-12)
    for seed in range(5):
        x = 3 * targets(seed) + 2
        th.testing.assert_close(ours(x), theirs(x.flatten(0, 1)).reshape(x.shape), rtol=1e-4, atol=1e-5)
    th.testing.assert_close((ours.running_mean, ours.running_var), (theirs.running_mean, theirs.running_var))
    ours.eval()
    theirs.eval()
    th.testing.assert_close(ours(x), theirs(x.flatten(0, 1)).reshape(x.shape), rtol=1e-4, atol=1e-5)
    before = ours.running_mean.clone()
    ours(x)
    assert th.equal(ours.running_mean, before)


@pytest.mark.parametrize("training", [True, False])
def test_denormalize_is_the_inverse_by_the_running_statistics(training):
    normalizer = TargetNormalizer(2).train(training)
    normalizer.running_mean.copy_(th.tensor([5.0, -1e-4]))
    normalizer.running_var.copy_(th.tensor([4.0, 1e-8]))
    x = targets()
    th.testing.assert_close(normalizer.denormalize(x), x * th.tensor([2.0, 1e-4]) + th.tensor([5.0, -1e-4]))
    normalizer.eval()
    th.testing.assert_close(normalizer(normalizer.denormalize(x)), x, rtol=1e-4, atol=1e-4)


def test_at_first_denormalize_changes_nothing():
    x = targets()
    assert th.equal(TargetNormalizer(2).denormalize(x), x)


def test_one_target_alone_is_normalized_by_the_running_statistics():
    normalizer = TargetNormalizer(2)
    normalizer.running_mean.fill_(1.0)
    normalizer.running_var.fill_(4.0)
    th.testing.assert_close(normalizer(th.tensor([[[3.0, 1.0]]])), th.tensor([[[1.0, 0.0]]]))
    assert normalizer.running_mean.tolist() == [1.0, 1.0]


def test_two_targets_have_a_variance():
    normalizer = TargetNormalizer(1)
    assert normalizer(th.tensor([[[1.0], [3.0]]])).flatten().tolist() == pytest.approx([-1.0, 1.0])
    assert normalizer.running_mean.item() == pytest.approx(0.2)  # a tenth of the way to 2
    assert normalizer.running_var.item() == pytest.approx(1.1)  # a tenth of the way to the unbiased 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_leaves_the_running_statistics_finite(bad):
    normalizer = TargetNormalizer(2)
    x = targets()
    x[0, 0, 0] = bad
    assert th.isfinite(normalizer(x)).all()
    assert th.isfinite(normalizer.running_mean).all() and th.isfinite(normalizer.running_var).all()
    x[0, 0, 0] = 0.0  # the running mean, as it was
    other = TargetNormalizer(2)
    other(x)
    assert th.equal(other.running_mean, normalizer.running_mean)


@pytest.mark.parametrize("large", [1e20, 3e38])
def test_a_square_that_overflows_does_not_stay(large):
    """Its loss is not finite, and training stops there; what is kept is as good as the parameters"""
    normalizer = TargetNormalizer(2)
    x = targets()
    normalizer(x)
    before = normalizer.running_mean.clone(), normalizer.running_var.clone()
    x[1, 2, 0] = large
    normalizer(x)
    assert normalizer.running_mean[0] == before[0][0] and normalizer.running_var[0] == before[1][0]
    assert normalizer.running_mean[1] != before[0][1]  # the other column goes on
    th.testing.assert_close(normalizer(targets(1)).std((0, 1), correction=0), th.ones(2), atol=1e-3, rtol=0)
