"""Stepping with a KV cache gives what one pass over the window gives, whatever the rows are at."""

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_attention_ac.landmarks import SURPRISE_DECAY
from sb3_attention_ac.networks.history_network import HistoryNetwork
from sb3_attention_ac.networks.kv_cache import IncrementalEncoder, KVCache, Surprise
from sb3_attention_ac.networks.preprocessing import AgeEncoder
from sb3_attention_ac.networks.transformer import TrajectoryEncoder
from sb3_attention_ac.type_aliases import EncoderOutput, TrajectoryWindows

F, E, H = 3, 2, 6  # widths of features, previous_steps and latents


def incremental(
    n_context: int,
    chunk_length: int,
    n_frames: int = 1,
    n_layers: int = 1,
    n_landmarks: int = 0,
    age_input: bool | str = False,
    surprise: Surprise | None = None,
) -> IncrementalEncoder:
    th.manual_seed(0)
    encoder = TrajectoryEncoder(H, E, 8, n_layers, 2, 16, 0.0, 9.0)
    network = HistoryNetwork(H, n_frames, encoder, 8, age_encoder=AgeEncoder(age_input))
    mlp = nn.Sequential(nn.Linear(F * n_frames + network.age_encoder.dim, H), nn.Tanh())
    with th.no_grad():
        for parameter in [*network.parameters(), *mlp.parameters()]:
            parameter.add_(0.5 * th.randn_like(parameter))
    return IncrementalEncoder(network, mlp, n_context, chunk_length, n_landmarks, surprise)


def empty(inc: IncrementalEncoder, n: int) -> KVCache:
    return inc.empty(n, F, E, 1)


class Steps:
    """Random steps of N environments, T each"""

    def __init__(self, n: int, length: int, episode_end: float, seed: int = 0):
        generator = th.Generator().manual_seed(seed)
        self.features = th.randn(n, length, F, generator=generator)
        self.previous_steps = th.randn(n, length, E, generator=generator)
        self.starts = th.rand(n, length, generator=generator) < episode_end
        self.starts[:, 0] = True
        self.ids = self.starts.long().cumsum(1)

    @property
    def ages(self) -> th.Tensor:
        step = th.arange(self.ids.shape[1]).expand_as(self.ids)
        return (step - th.where(self.starts, step, 0).cummax(1).values).float()

    def rows(self, *which: int) -> "Steps":
        part = object.__new__(Steps)
        for name, value in vars(self).items():
            setattr(part, name, value[list(which)])
        return part


@th.no_grad()
def step(inc: IncrementalEncoder, cache: KVCache, steps: Steps, t: int) -> EncoderOutput:
    """As an actor does, who knows the age"""
    starts = steps.starts[:, t]
    cache.age.masked_fill_(starts, 0.0)
    output = inc.step(cache, steps.features[:, t], steps.previous_steps[:, t], starts if starts.any() else None)
    cache.age.add_(1.0)
    return output


@th.no_grad()
def one_pass(inc: IncrementalEncoder, steps: Steps, first: int, length: int) -> EncoderOutput:
    """What a training window gives for a chunk: its context before it, with nothing where nothing was, and landmarks"""
    n, k, begin = len(steps.ids), inc.n_landmarks, first - inc.n_context
    before = max(-begin, 0)
    # The first steps of the present episode, of those that have left the context
    landmarks = th.full((n, k), -1)
    for row in range(n):
        episode = [t for t in range(max(begin, 0)) if steps.ids[row, t] == steps.ids[row, first - 1]][:k]
        landmarks[row, : len(episode)] = th.tensor(episode, dtype=th.long)

    def window(x: th.Tensor, fill: float) -> th.Tensor:
        parts = [th.full((n, before, *x.shape[2:]), fill, dtype=x.dtype), x[:, max(begin, 0) : first + length]]
        if k > 0:
            found = x[th.arange(n).unsqueeze(1), landmarks.clamp(min=0)]
            found[landmarks < 0] = fill
            parts = [found, *parts]
        return th.cat(parts, dim=1)

    ids = window(steps.ids, -1)
    nothing = th.zeros(n, ids.shape[1])
    features, ages = window(steps.features, 0.0), window(steps.ages, 0.0)
    windows = TrajectoryWindows(features, nothing, nothing, nothing > 0, ids, ages, n_landmarks=k)
    return inc.network(inc.mlp, windows.observations, window(steps.previous_steps, 0.0), windows, length)


def assert_same(ours: EncoderOutput, theirs: EncoderOutput) -> None:
    th.testing.assert_close(tuple(ours), tuple(theirs), rtol=1e-4, atol=1e-5)


def check(inc: IncrementalEncoder, steps: Steps) -> None:
    chunk_length = inc.n_slots - inc.n_before
    cache = empty(inc, len(steps.ids))
    length = steps.ids.shape[1]
    outputs = [step(inc, cache, steps, t) for t in range(length)]
    for first in range(0, length, chunk_length):
        n = min(chunk_length, length - first)
        whole = one_pass(inc, steps, first, n)
        for t in range(n):
            assert_same(outputs[first + t], EncoderOutput(*(part[:, t] for part in whole)))


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("n_frames", [1, 3])
@pytest.mark.parametrize(("n_context", "chunk_length"), [(4, 4), (5, 2), (2, 5), (1, 1), (0, 3), (3, 20)])
@pytest.mark.parametrize(("n_landmarks", "episode_end"), [(0, 0.15), (2, 0.1)])
def test_stepping_equals_one_pass(n_context, chunk_length, n_frames, n_layers, n_landmarks, episode_end):
    inc = incremental(
        n_context, chunk_length, n_frames, n_layers, n_landmarks, age_input="sinusoidal" if n_landmarks > 0 else False
    )
    check(inc, Steps(3, 14, episode_end))


@pytest.mark.parametrize("seed", range(25))
def test_stepping_equals_one_pass_whatever_the_lengths(seed):
    rng = np.random.default_rng(seed)
    n_context, chunk_length, n_frames, n_landmarks = (int(rng.integers(low, 6)) for low in (0, 1, 1, 0))
    inc = incremental(n_context, chunk_length, n_frames, 2, n_landmarks, age_input=bool(rng.integers(2)))
    check(inc, Steps(2, int(rng.integers(1, 17)), rng.choice([0.0, 0.1, 0.3, 1.0]), seed))


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


@pytest.mark.parametrize("n_frames", [1, 4])
@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize(("n_landmarks", "episode_end"), [(0, 0.0), (0, 0.2), (2, 0.1)])
def test_rows_at_different_positions(n_frames, n_layers, n_landmarks, episode_end):
    """Environments that began at different times, as in states of ``predict`` put together"""
    inc, steps = incremental(3, 4, n_frames, n_layers, n_landmarks, n_landmarks > 0), Steps(3, 20, episode_end)
    ahead, alone, outputs = (0, 3, 5), [], []
    for row, n in enumerate(ahead):
        cache, own = empty(inc, 1), steps.rows(row)
        outputs.append([step(inc, cache, own, t) for t in range(n)])
        alone.append(cache)
    together = joined(*(KVCache._make(part.clone() for part in cache) for cache in alone))
    # The last one has made room once
    assert together.position.tolist() == [n_landmarks + slot for slot in (3, 6, 4)]
    for k in range(12):
        index = th.tensor([[n + k] for n in ahead])
        starts = steps.starts.gather(1, index)[:, 0]
        pick = th.arange(3)
        args = steps.features[pick, index[:, 0]], steps.previous_steps[pick, index[:, 0]], starts if starts.any() else None
        with th.no_grad():
            together.age.masked_fill_(starts, 0.0)
            output = inc.step(together, *args)
            together.age.add_(1.0)
        for row, n in enumerate(ahead):
            expected = step(inc, alone[row], steps.rows(row), n + k)
            assert_same(EncoderOutput(*(part[row : row + 1] for part in output)), expected)
    for ours, theirs in zip(together, joined(*alone), strict=True):
        if ours.dim() < 3:
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


def test_landmarks_are_the_first_steps_that_have_left_the_context():
    """Two landmarks, a context of one and chunks of two: slots 0 and 1, 2, and 3 and 4"""
    inc, steps = incremental(1, 2, n_landmarks=2), Steps(1, 9, 0.0)
    steps.starts[0, 6] = True
    cache, seen = empty(inc, 1), []
    for t in range(9):
        step(inc, cache, steps, t)
        seen.append((cache.position.tolist(), cache.start.tolist(), cache.landmark_ages[0].tolist()))
        for slot, age in enumerate(cache.landmark_ages[0].tolist()):
            if age >= 0:
                began = 0 if t < 6 else 6
                assert th.equal(cache.features[0, slot], steps.features[0, began + int(age)])
                assert th.equal(cache.previous_steps[0, slot], steps.previous_steps[0, began + int(age)])
    assert seen == [
        ([4], [3], [-1, -1]),
        ([5], [3], [-1, -1]),
        ([4], [2], [0, -1]),  # step 0 has left the context
        ([5], [2], [0, -1]),
        ([4], [2], [0, 1]),  # steps 1 and 2 have: the first ones stay
        ([5], [2], [0, 1]),
        ([4], [3], [-1, -1]),  # an episode starts
        ([5], [3], [-1, -1]),
        ([4], [2], [0, -1]),
    ]


@th.no_grad()
def test_landmarks_are_the_first_step_and_the_most_surprising_ones():
    """Two landmarks, a context of one and chunks of two: steps 1 and 2 are chosen from together, then 3 and 4, ..."""
    # The first step, of which nothing is expected, stays
    surprises = [99.0, 1.0, 5.0, 2.0, 4.6, 4.0, 4.1, 0.0, 0.0, 0.0, 0.0]  # that of the first step does not matter
    inc = incremental(1, 2, n_landmarks=2, surprise=lambda hidden, before, features, actions: features[:, 0])
    steps = Steps(1, 11, 0.0)
    steps.features[0, :, 0] = th.tensor(surprises)
    cache, seen = empty(inc, 1), []
    for t in range(11):
        step(inc, cache, steps, t)
        assert cache.last_surprise().tolist() == [pytest.approx(surprises[t] if t > 0 else th.inf)]
        seen.append((cache.landmark_ages[0].tolist(), cache.surprises[0, 1].item()))
    assert seen[1:11:2] == [
        ([-1, -1], 0),
        ([-1, 0], th.inf),  # nothing else has left the context
        ([0, 2], pytest.approx(5.0 * SURPRISE_DECAY)),
        ([0, 4], pytest.approx(4.6 * SURPRISE_DECAY)),  # 5 has faded to 4.5
        ([0, 4], pytest.approx(4.6 * SURPRISE_DECAY**2)),  # 4.14 is more than 4.1
    ]


@th.no_grad()
def test_what_a_surprise_is_asked_about():
    """The hidden state at the step before, the features then and now, and the action between them"""
    asked: list[list[th.Tensor]] = []
    before = th.zeros(1, 8)

    def note(*given: th.Tensor) -> th.Tensor:
        asked.append([part.clone() for part in given])
        return th.zeros(1)

    inc, steps = incremental(2, 2, n_landmarks=1, surprise=note), Steps(1, 6, 0.0)
    cache = empty(inc, 1)
    for t in range(6):
        cache.previous_action.fill_(float(t))
        hidden = step(inc, cache, steps, t).hidden
        assert th.equal(asked[t][2], steps.features[:, t]) and asked[t][3].item() == t
        assert th.equal(cache.hidden, hidden)
        if t > 0:
            assert th.equal(asked[t][1], steps.features[:, t - 1])
        if t in (1, 3, 5):  # in the middle of a chunk
            assert th.equal(asked[t][0], before)
        before = hidden
    # As a chunk begins, the one that its window gives: of steps 0 (the landmark), 2 and 3
    nothing, which = th.zeros(1, 3), [0, 2, 3]
    ids, ages = th.ones((1, 3), dtype=th.long), th.tensor([[0.0, 2.0, 3.0]])
    windows = TrajectoryWindows(steps.features[:, which], nothing, nothing, nothing > 0, ids, ages, n_landmarks=1)
    whole = inc.network(inc.mlp, windows.observations, steps.previous_steps[:, which], windows, 1)
    th.testing.assert_close(asked[4][0], whole.hidden[:, 0])


# --- prefill ---


@pytest.mark.parametrize("n_frames", [1, 3])
@pytest.mark.parametrize(("n_layers", "age_input"), [(1, False), (2, True), (1, "sinusoidal")])
@th.no_grad()
def test_going_on_after_a_prefill(n_frames, n_layers, age_input):
    """Of rows with context steps of the current episode in all, some and no slots"""
    inc, steps = incremental(4, 3, n_frames, n_layers, age_input=age_input), Steps(3, 7, 0.0)
    steps.starts[:, 1:] = False
    steps.starts[1, 2] = steps.starts[2, 4] = True
    steps.ids = steps.starts.long().cumsum(1)
    cache = empty(inc, 3)
    cache.features[:, :4], cache.previous_steps[:, :4] = steps.features[:, :4], steps.previous_steps[:, :4]
    cache.start.copy_(th.tensor([0, 2, 4]))
    cache.age.copy_(th.tensor([4.0, 2.0, 0.0]))
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
    cache.features[:, :4], cache.previous_steps[:, :4] = steps.features[:, :4], steps.previous_steps[:, :4]
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
    shapes = [(5, 7, F), (5, 7, E), (5, 2, 2, 7, 4), (5, 2, 2, 7, 4), (5, 7), (5,), (5,), (5,), (5, 0), (5, 0), (5, 0)]
    assert [tuple(part.shape) for part in cache] == shapes
    assert cache.position.tolist() == cache.start.tolist() == [3] * 5
    assert cache.position.dtype == cache.start.dtype == th.int64
    assert all(part.dtype == th.float32 and part.abs().max() == 0 for part in cache[:6])
    assert (inc.n_landmarks, inc.n_context, inc.n_before, inc.n_slots) == (0, 3, 3, 7)
    with_landmarks = incremental(3, 4, n_landmarks=2)
    cache = empty(with_landmarks, 5)
    assert cache.landmark_ages.tolist() == [[-1, -1]] * 5 and cache.landmark_ages.dtype == th.float32
    assert cache.position.tolist() == cache.start.tolist() == [5] * 5 and cache.features.shape == (5, 9, F)


def test_landmarks_are_asked_for():
    with_attention = incremental(3, 4).network
    assert IncrementalEncoder(with_attention, nn.Identity(), 3, 4).n_landmarks == 0


def test_a_network_without_attention_has_nothing_to_remember():
    with pytest.raises(AssertionError, match=r"^a network without attention has nothing to remember$"):
        IncrementalEncoder(HistoryNetwork(H, 1, None, 8), nn.Identity(), 3, 4)


def test_a_cache_survives_arrays_of_any_type():
    """To arrays and back, of other types too; nothing is shared with them."""
    inc, steps = incremental(3, 4), Steps(2, 6, 0.2)
    cache = empty(inc, 2)
    for t in range(5):
        step(inc, cache, steps, t)
    arrays = [array.astype(np.float64) for array in cache.to_numpy()]
    assert all(isinstance(array, np.ndarray) for array in arrays)
    again = KVCache.from_numpy(arrays, inc.device)
    assert [part.dtype for part in again] == [part.dtype for part in cache]
    assert all(map(th.equal, again, cache))
    before = [array.copy() for array in arrays]
    assert_same(step(inc, again, steps, 5), step(inc, cache, steps, 5))
    assert all(map(np.array_equal, arrays, before))
    with pytest.raises(ValueError):
        KVCache.from_numpy(arrays[:-1], inc.device)
