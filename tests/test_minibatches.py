"""Minibatches of the rollout buffer: shuffled transitions, and windows that hold each step once."""

import numpy as np
import pytest
import torch as th
from sb3_contrib.common.maskable.buffers import MaskableRolloutBufferSamples
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from test_buffers import ACTIONS, NUMBERS, filled

from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.type_aliases import TransitionSamples, WindowSamples


def complete(n_steps=5, n_envs=2, **options) -> TrajectoryRolloutBuffer:
    """Two rollouts, with targets that say which step they are of"""
    buffer = filled(np.random.default_rng(0).random((2 * n_steps, n_envs)) < 0.3, n_steps=n_steps, **options)
    index = np.arange(n_steps * n_envs, dtype=np.float32).reshape(n_steps, n_envs)
    for k, name in enumerate(("values", "mlp_values", "log_probs", "advantages", "returns")):
        getattr(buffer, name)[:] = index + 100 * (k + 1)
    buffer.logit_offsets, buffer.action_masks = np.stack([index, -index], -1), index[..., None] > 3
    return buffer


def check_targets(samples: TransitionSamples | WindowSamples, index: th.Tensor, observations: th.Tensor, values: int) -> None:
    assert th.equal(samples.old_values, index + values)
    assert th.equal(samples.old_log_prob, index + 300)
    assert th.equal(samples.advantages, index + 400) and th.equal(samples.returns, index + 500)
    assert th.equal(samples.logit_offsets, th.stack([index, -index], -1))
    assert th.equal(samples.action_masks, (index > 3).unsqueeze(-1))
    assert th.equal(samples.actions, th.cat([observations + 0.5, -observations], -1))
    step, env = index // 2 + 5, index % 2
    assert th.equal(observations.squeeze(-1), 10 * (step + 1) + env)


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(None, [10]), (4, [4, 4, 2]), (np.int64(10), [10]), (100, [10]), (1, [1] * 10)]
)
def test_transitions(batch_size, sizes):
    buffer = complete()
    parts = list(buffer.get_transitions(batch_size))
    assert [len(part.returns) for part in parts] == sizes
    for samples in parts:
        assert isinstance(samples, TransitionSamples)
        check_targets(samples, samples.returns - 500, samples.observations, values=200)  # V_mlp
    order = th.cat([part.returns for part in parts]) - 500
    assert order.sort().values.tolist() == list(range(10))
    again = th.cat([part.returns for part in buffer.get_transitions(batch_size)]) - 500
    assert order.tolist() != list(range(10)) and order.tolist() != again.tolist()


@pytest.mark.parametrize("masked", [False, True])
def test_transitions_as_sb3_and_contrib_know_them(masked):
    buffer = complete()
    if not masked:
        buffer.action_masks = None
    np.random.seed(3)
    theirs = list(buffer.get(4))
    np.random.seed(3)
    ours = list(buffer.get_transitions(4))
    for sb3, samples in zip(theirs, ours, strict=True):
        assert type(sb3) is (MaskableRolloutBufferSamples if masked else RolloutBufferSamples)
        assert all(map(th.equal, sb3, samples[: 6 + masked]))
    assert [len(part.returns) for part in buffer.get()] == [10]
    one = buffer._get_samples(np.array([7, 2]))
    assert one.returns.tolist() == [507, 502] and one.old_values.tolist() == [207, 202]


def test_minibatches_are_sb3s():
    """With the same random stream, of several environments too"""
    buffer = complete()
    sb3 = RolloutBuffer(5, NUMBERS, ACTIONS, "cpu", n_envs=2)
    for t in range(5):
        step = buffer.observations[t], buffer.actions[t], buffer.rewards[t], buffer.episode_starts[t]
        sb3.add(*step, th.as_tensor(buffer.mlp_values[t]), th.as_tensor(buffer.log_probs[t]))
    sb3.advantages, sb3.returns = buffer.advantages.copy(), buffer.returns.copy()
    for batch_size in (4, None):
        parts = []
        for each in (sb3, buffer):
            np.random.seed(3)
            parts.append(list(each.get(batch_size)))
        for theirs, ours in zip(*parts, strict=True):
            assert all(map(th.equal, theirs, ours))


def test_transitions_without_masks_and_offsets():
    buffer = complete()
    buffer.logit_offsets = buffer.action_masks = None
    samples = next(buffer.get_transitions(3))
    assert samples.logit_offsets is None and samples.action_masks is None and len(samples.returns) == 3


@pytest.mark.parametrize(
    ("chunk_length", "batch_size", "shapes"),
    [
        (2, None, [(4, 2), (2, 1)]),
        (2, 4, [(2, 2), (2, 2), (2, 1)]),
        (2, 5, [(2, 2), (2, 2), (2, 1)]),  # rounded to whole chunks
        (2, 1, [(1, 2)] * 4 + [(1, 1)] * 2),  # one at least
        (2, 6, [(3, 2), (1, 2), (2, 1)]),
        (5, 5, [(1, 5), (1, 5)]),
        (1, 4, [(4, 1), (4, 1), (2, 1)]),
    ],
)
def test_windows_in_minibatches(chunk_length, batch_size, shapes):
    buffer = complete(chunk_length=chunk_length)
    parts = list(buffer.get_windows(batch_size))
    assert sorted(tuple(part.returns.shape) for part in parts) == sorted(shapes)  # shorter chunks come at any place
    for samples in parts:
        index, n = samples.returns - 500, samples.returns.shape[1]
        check_targets(samples, index, samples.windows.observations[:, -n:], values=100)  # V(h_t), not V_mlp
        assert samples.windows.episode_ids.shape[1] == 3 + n
        assert (index[:, 1:] - index[:, :-1] == 2).all()  # steps of one environment in a row
        assert (index[:, 0] // 2 % chunk_length == 0).all()
    assert th.cat([part.returns.flatten() for part in parts]).sort().values.tolist() == list(range(500, 510))


def test_windows_are_shuffled():
    buffer = complete(n_steps=12, chunk_length=2)
    orders = [tuple(part.returns[0, 0].item() for part in buffer.get_windows(1)) for _ in range(2)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) != list(orders[0])
    assert {order % 2 for order in orders[0]} == {0, 1}  # of every environment


def test_windows_may_be_shuffled_by_a_random_state_of_their_own():
    buffer = complete(n_steps=12, chunk_length=2)
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    orders = [[part.returns[0, 0].item() for part in buffer.get_windows(2, np.random.RandomState(seed))] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert np.random.get_state()[1].tolist() == before
    next(buffer.get_windows(2))
    assert np.random.get_state()[2] > 0  # else from NumPy's stream


def test_windows_of_some_chunks():
    buffer = complete()
    samples = buffer.window_samples(np.array([2, 0]), np.array([1, 0]), 2)
    assert samples.returns.tolist() == [[505, 507], [500, 502]]
    assert samples.windows.observations.shape == (2, 5, 1)


def test_who_takes_the_first_minibatches_alone_sees_every_step():
    """Chunks of 4, 4 and 2 steps: attention beside an MLP actor starts a new pass in each update and seldom ends it"""
    buffer, random = complete(n_steps=10, n_envs=2, chunk_length=4), np.random.RandomState(0)
    counts = np.zeros(20)
    for _ in range(300):
        first = next(iter(buffer.get_windows(4, random)))
        counts[(first.returns.numpy() - 500).astype(int)] += 1
    shares = counts.reshape(10, 2).mean(1)
    assert shares[:8].std() < 15 and 0.5 < shares[8:].mean() / shares[:8].mean() < 2  # not 0


def test_chunks_of_one_length_take_one_draw():
    """So that a run's random numbers do not depend on how its windows are cut."""
    buffer = complete(n_steps=6, chunk_length=2)
    np.random.seed(1)
    list(buffer.get_windows(4))
    after = np.random.random()
    np.random.seed(1)
    np.random.permutation(6)
    assert np.random.random() == after
