"""PPO's losses, by numbers that can be checked by hand."""

import math

import numpy as np
import pytest
import torch as th

from sb3_attention_ac.losses import approximate_kl, clipped_surrogate_loss, entropy_loss, normalized, value_loss


def test_normalized():
    advantages = th.tensor([[1.0, 3.0], [5.0, 7.0]])
    # Mean 4, and of the unbiased variance (9 + 1 + 1 + 9) / 3 the root
    expected = (advantages - 4) / (20 / 3) ** 0.5
    th.testing.assert_close(normalized(advantages), expected)
    assert normalized(th.tensor([1.0, 3.0])).tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])


@pytest.mark.parametrize("shape", [(1,), (1, 1), (0,)])
def test_a_single_advantage_is_left_as_it_is(shape):
    advantages = th.full(shape, 3.0)
    assert normalized(advantages) is advantages


def test_advantages_that_are_all_the_same_are_zero():
    assert normalized(th.full((3,), 7.0)).tolist() == [0, 0, 0]


def test_the_epsilon_is_sb3s():
    """Added to the standard deviation: with one of 1e-8 half of it remains"""
    tiny = th.tensor([-1.0, 1.0], dtype=th.float64) * (0.5**0.5) * 1e-8
    assert normalized(tiny).tolist() == pytest.approx([-(0.5**0.5) / 2, 0.5**0.5 / 2])


def test_clipped_surrogate():
    """Each case: the smaller of two products, its sign turned, over the mean"""
    cases = {
        (1.0, 2.0): 2.0,
        (1.5, 2.0): 2.4,  # up and good: clipped at 1.2
        (0.5, 2.0): 1.0,  # down and good: not clipped
        (1.5, -2.0): -3.0,  # up and bad: not clipped
        (0.5, -2.0): -1.6,  # down and bad: clipped at 0.8
        (1.2, 1.0): 1.2,
        (0.8, -1.0): -0.8,
    }
    for (ratio, advantage), objective in cases.items():
        assert clipped_surrogate_loss(th.tensor([ratio]), th.tensor([advantage]), 0.2).item() == pytest.approx(-objective)
    ratios, advantages = th.tensor(list(cases)).T
    mean = sum(cases.values()) / len(cases)
    assert clipped_surrogate_loss(ratios, advantages, 0.2).item() == pytest.approx(-mean)
    assert clipped_surrogate_loss(th.tensor([3.0]), th.tensor([1.0]), 1.0).item() == -2


def test_gradients_of_the_surrogate_vanish_where_it_is_clipped():
    ratio = th.tensor([1.0, 1.5, 0.5, 1.5, 0.5], requires_grad=True)
    clipped_surrogate_loss(ratio, th.tensor([2.0, 2.0, 2.0, -2.0, -2.0]), 0.2).backward()
    assert ratio.grad.tolist() == pytest.approx([-0.4, 0, -0.4, 0.4, 0])


def test_value_loss():
    values, old, returns = th.tensor([1.0, 3.0, -2.0]), th.tensor([0.0, 0.0, 0.0]), th.tensor([2.0, 2.0, 2.0])
    assert value_loss(values, old, returns, None).item() == pytest.approx((1 + 1 + 16) / 3)
    # Moved by one at most: 1, 1, -1
    assert value_loss(values, old, returns, 1.0).item() == pytest.approx((1 + 1 + 9) / 3)
    assert value_loss(values, old + 2.5, returns, 1.0).item() == pytest.approx((0.5**2 + 1 + 0.5**2) / 3)  # 1.5, 3, 1.5


def test_values_beyond_the_clip_range_have_no_gradient():
    values = th.tensor([0.5, 3.0, -3.0], requires_grad=True)
    value_loss(values, th.zeros(3), th.full((3,), 2.0), 1.0).backward()
    assert values.grad.tolist() == pytest.approx([-1.0, 0, 0])


def test_entropy_loss():
    log_prob = th.tensor([-1.0, -3.0])
    assert entropy_loss(th.tensor([1.0, 4.0]), log_prob).item() == -2.5
    assert entropy_loss(None, log_prob).item() == -2.0  # without a formula: minus the log probabilities


def test_approximate_kl():
    log_ratio = [0.5, -0.3]
    expected = np.mean([math.exp(x) - 1 - x for x in log_ratio])
    assert approximate_kl(th.tensor(log_ratio)).item() == pytest.approx(expected)
    assert approximate_kl(th.zeros(3)).item() == 0
    assert all(approximate_kl(th.tensor([x])).item() > 0 for x in (-1.0, 1.0))
