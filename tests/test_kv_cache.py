"""Stepping with a KV cache gives what one pass over the window gives, whatever the rows are at."""

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sb3_attention_ac.networks.history_network import HistoryNetwork
from sb3_attention_ac.networks.kv_cache import IncrementalEncoder, KVCache
from sb3_attention_ac.networks.transformer import TrajectoryEncoder
from sb3_attention_ac.type_aliases import EncoderOutput, TrajectoryWindows

F, E, H = 3, 2, 6  # widths of features, events and latents


def incremental(n_context: int, chunk_length: int, n_frames: int = 1, n_layers: int = 1) -> IncrementalEncoder:
    th.manual_seed(0)
    encoder = TrajectoryEncoder(H, E, 8, n_layers, 2, 16, 0.0, 9.0)
    network = HistoryNetwork(H, n_frames, encoder, 8)
    mlp = nn.Sequential(nn.Linear(F * n_frames, H), nn.Tanh())
    with th.no_grad():
        for parameter in [*network.parameters(), *mlp.parameters()]:
            parameter.add_(0.5 * th.randn_like(parameter))
    return IncrementalEncoder(network, mlp, n_context, chunk_length)


def empty(inc: IncrementalEncoder, n: int) -> KVCache:
    return inc.empty(n, F, E, 1)


class Steps:
    """Random steps of N environments, T each"""

    def __init__(self, n: int, length: int, episode_end: float, seed: int = 0):
        generator = th.Generator().manual_seed(seed)
        self.features = th.randn(n, length, F, generator=generator)
        self.events = th.randn(n, length, E, generator=generator)
        self.starts = th.rand(n, length, generator=generator) < episode_end
        self.starts[:, 0] = True
        self.ids = self.starts.long().cumsum(1)

    def rows(self, *which: int) -> "Steps":
        part = object.__new__(Steps)
        for name, value in vars(self).items():
            setattr(part, name, value[list(which)])
        return part


@th.no_grad()
def step(inc: IncrementalEncoder, cache: KVCache, steps: Steps, t: int) -> EncoderOutput:
    starts = steps.starts[:, t]
    return inc.step(cache, steps.features[:, t], steps.events[:, t], starts if starts.any() else None)


@th.no_grad()
def one_pass(inc: IncrementalEncoder, steps: Steps, first: int, length: int) -> EncoderOutput:
    """What a training window gives for a chunk: its context before it, with nothing where nothing was"""
    n, begin = len(steps.ids), first - inc.n_context
    before = max(-begin, 0)

    def window(x: th.Tensor, fill: float) -> th.Tensor:
        part = x[:, max(begin, 0) : first + length]
        return th.cat([th.full((n, before, *x.shape[2:]), fill, dtype=x.dtype), part], dim=1)

    ids = window(steps.ids, -1)
    nothing = th.zeros(n, ids.shape[1])
    windows = TrajectoryWindows(window(steps.features, 0.0), nothing, nothing, nothing > 0, ids, nothing)
    return inc.network(inc.mlp, windows.observations, window(steps.events, 0.0), windows, length)


def assert_same(ours: EncoderOutput, theirs: EncoderOutput) -> None:
    th.testing.assert_close(tuple(ours), tuple(theirs), rtol=1e-4, atol=1e-5)


def check(n_context: int, chunk_length: int, n_frames: int, n_layers: int, steps: Steps) -> None:
    inc = incremental(n_context, chunk_length, n_frames, n_layers)
    cache = empty(inc, len(steps.ids))
    length = steps.ids.shape[1]
    outputs = [step(inc, cache, steps, t) for t in range(length)]
    for first in range(0, length, chunk_length):
        n = min(chunk_length, length - first)
        whole = one_pass(inc, steps, first, n)
        for t in range(n):
            assert_same(outputs[first + t], EncoderOutput(*(part[:, t] for part in whole)))


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("n_frames", [1, 2, 4])
@pytest.mark.parametrize(("n_context", "chunk_length"), [(4, 4), (5, 2), (2, 5), (1, 1), (0, 3), (3, 20)])
@pytest.mark.parametrize("episode_end", [0.0, 0.15, 1.0])
def test_stepping_equals_one_pass(n_context, chunk_length, n_frames, n_layers, episode_end):
    check(n_context, chunk_length, n_frames, n_layers, Steps(3, 14, episode_end))


WIDTHS = st.integers(0, 6), st.integers(1, 6), st.integers(1, 5)


@settings(max_examples=25, deadline=None)
@given(*WIDTHS, st.sampled_from([0.0, 0.2, 0.5]), st.integers(1, 16), st.integers(0, 99))
def test_stepping_equals_one_pass_whatever_the_lengths(n_context, chunk_length, n_frames, episode_end, length, seed):
    check(n_context, chunk_length, n_frames, 2, Steps(2, length, episode_end, seed))


def test_what_is_forgotten_is_forgotten():
    """A step sees the steps of its window, and nothing before: what is older changes nothing, what is not does."""
    inc, steps = incremental(3, 2), Steps(1, 9, 0.0)
    caches = [empty(inc, 1) for _ in range(2)]
    for t in range(9):
        other = Steps(1, 9, 0.0)
        other.features[:, t] += float(t < 5)
        output, changed = step(inc, caches[0], steps, t), step(inc, caches[1], other, t)
    # Step 8 is the first of the chunk that begins at 8: its context is 5, 6, 7
    assert_same(output, changed)
    for t in range(5, 8):
        inc2 = incremental(3, 2)
        cache = empty(inc2, 1)
        for k in range(9):
            other = Steps(1, 9, 0.0)
            other.features[:, k] += float(k == t)
            changed = step(inc2, cache, other, k)
        assert not th.allclose(changed.hidden, output.hidden, atol=1e-4), t


# --- rows that are not at the same place ---


def joined(*caches: KVCache) -> KVCache:
    return KVCache._make(th.cat(parts) for parts in zip(*caches, strict=True))


@pytest.mark.parametrize("n_frames", [1, 2, 4])
@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("episode_end", [0.0, 0.2])
def test_rows_at_different_positions(n_frames, n_layers, episode_end):
    """Environments that began at different times, as in states of ``predict`` put together"""
    inc, steps = incremental(3, 4, n_frames, n_layers), Steps(3, 20, episode_end)
    ahead, alone, outputs = (0, 3, 5), [], []
    for row, n in enumerate(ahead):
        cache, own = empty(inc, 1), steps.rows(row)
        outputs.append([step(inc, cache, own, t) for t in range(n)])
        alone.append(cache)
    together = joined(*(KVCache._make(part.clone() for part in cache) for cache in alone))
    assert together.position.tolist() == [3, 6, 4]  # the last one has made room once
    for k in range(12):
        index = th.tensor([[n + k] for n in ahead])
        starts = steps.starts.gather(1, index)[:, 0]
        pick = th.arange(3)
        args = steps.features[pick, index[:, 0]], steps.events[pick, index[:, 0]], starts if starts.any() else None
        with th.no_grad():
            output = inc.step(together, *args)
        for row, n in enumerate(ahead):
            expected = step(inc, alone[row], steps.rows(row), n + k)
            assert_same(EncoderOutput(*(part[row : row + 1] for part in output)), expected)
    for ours, theirs in zip(together, joined(*alone), strict=True):
        if ours.dim() < 3:  # slots that hold nothing yet may differ
            assert th.equal(ours, theirs)


def test_positions_and_starts():
    inc = incremental(3, 2)
    cache, steps = empty(inc, 2), Steps(2, 8, 0.0)
    steps.starts[0, 2] = True
    seen = []
    for t in range(8):
        step(inc, cache, steps, t)
        seen.append((cache.position.tolist(), cache.start.tolist()))
    assert seen == [
        ([4, 4], [3, 3]),
        ([5, 5], [3, 3]),
        ([4, 4], [3, 1]),  # full: the last three steps were moved to the front; then an episode starts at slot 3
        ([5, 5], [3, 1]),
        ([4, 4], [1, 0]),
        ([5, 5], [1, 0]),
        ([4, 4], [0, 0]),
        ([5, 5], [0, 0]),
    ]


# --- prefill ---


@pytest.mark.parametrize("n_frames", [1, 3])
@pytest.mark.parametrize("n_layers", [1, 2])
@th.no_grad()
def test_going_on_after_a_prefill(n_frames, n_layers):
    """Of rows with context steps of the current episode in all, some and no slots"""
    inc, steps = incremental(4, 3, n_frames, n_layers), Steps(3, 7, 0.0)
    steps.starts[:, 1:] = False
    steps.starts[1, 2] = steps.starts[2, 4] = True
    steps.ids = steps.starts.long().cumsum(1)
    cache = empty(inc, 3)
    cache.features[:, :4], cache.events[:, :4] = steps.features[:, :4], steps.events[:, :4]
    cache.start.copy_(th.tensor([0, 2, 4]))
    cache.position.fill_(6)
    inc.prefill(cache, slice(None))
    assert cache.position.tolist() == [4, 4, 4] and cache.start.tolist() == [0, 2, 4]
    whole = one_pass(inc, steps, 4, 3)
    for t in range(3):
        assert_same(step(inc, cache, steps, 4 + t), EncoderOutput(*(part[:, t] for part in whole)))


@th.no_grad()
def test_a_prefill_of_some_rows_leaves_the_others():
    inc, steps = incremental(4, 3), Steps(3, 7, 0.0)
    cache = empty(inc, 3)
    cache.features[:, :4], cache.events[:, :4] = steps.features[:, :4], steps.events[:, :4]
    cache.start.fill_(0)
    cache.position.fill_(6)
    whole = KVCache._make(part.clone() for part in cache)
    inc.prefill(whole, slice(None))
    inc.prefill(cache, th.tensor([0, 2]))
    assert cache.position.tolist() == [4, 6, 4]
    for name in ("keys", "values"):
        ours, theirs = getattr(cache, name), getattr(whole, name)
        th.testing.assert_close(ours[[0, 2]], theirs[[0, 2]])
        assert ours[1].abs().max() == 0 and theirs[1, :, :, :4].abs().max() > 0
        assert theirs[:, :, :, 4:].abs().max() == 0


@th.no_grad()
def test_without_context_a_prefill_sets_the_position_alone():
    inc = incremental(0, 3)
    cache = empty(inc, 2)
    cache.position.fill_(3)
    inc.prefill(cache, slice(None))
    assert cache.position.tolist() == [0, 0] and cache.keys.abs().max() == 0


# --- caches as arrays ---


def test_an_empty_cache():
    inc = incremental(3, 4, n_layers=2)
    cache = inc.empty(5, F, E, 7)
    shapes = [(5, 7, F), (5, 7, E), (5, 2, 2, 7, 4), (5, 2, 2, 7, 4), (5, 7), (5,), (5,), (5,)]
    assert [tuple(part.shape) for part in cache] == shapes
    assert cache.position.tolist() == cache.start.tolist() == [3] * 5
    assert cache.position.dtype == cache.start.dtype == th.int64
    assert all(part.dtype == th.float32 and part.abs().max() == 0 for part in cache[:6])
    assert (inc.n_context, inc.n_slots) == (3, 7)


def test_a_network_without_attention_has_nothing_to_remember():
    with pytest.raises(AssertionError, match="nothing to remember"):
        IncrementalEncoder(HistoryNetwork(H, 1, None, 8), nn.Identity(), 3, 4)


def test_a_cache_survives_arrays_of_any_type():
    """To arrays and back, of other types too; nothing is shared with them."""
    inc, steps = incremental(3, 4), Steps(2, 6, 0.2)
    cache = empty(inc, 2)
    for t in range(5):
        step(inc, cache, steps, t)
    arrays = [array.astype(np.float64) for array in cache.to_numpy()]
    assert all(isinstance(array, np.ndarray) for array in arrays)
    again = empty(inc, 2).filled_from(arrays)
    assert [part.dtype for part in again] == [part.dtype for part in cache]
    assert all(map(th.equal, again, cache))
    before = [array.copy() for array in arrays]
    assert_same(step(inc, again, steps, 5), step(inc, cache, steps, 5))
    assert all(map(np.array_equal, arrays, before))
    with pytest.raises(ValueError):
        empty(inc, 2).filled_from(arrays[:-1])
