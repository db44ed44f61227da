"""What goes into the networks: encoded actions, rewards, ages, and stacked frames."""

import math

import pytest
import torch as th
from gymnasium import spaces

from sb3_attention_ac.networks.preprocessing import (
    PERIODS,
    AgeEncoder,
    PreviousStepEncoder,
    encode_actions,
    one_hot,
    stack_frames,
    symlog,
)

BOX = spaces.Box(-1.0, 1.0, (2,))


@pytest.mark.parametrize(
    ("space", "dim"),
    [
        (spaces.Discrete(3), 3),
        (spaces.Discrete(3, start=2), 3),
        (spaces.MultiDiscrete([2, 5]), 7),
        (spaces.MultiBinary(4), 4),
        (spaces.MultiBinary((2, 3)), 6),
        (BOX, 2),
        (spaces.Box(-1.0, 1.0, (2, 3)), 6),
    ],
    ids=repr,
)
def test_width_of_encoded_actions(space, dim):
    assert spaces.flatdim(space) == dim
    n = {spaces.Discrete: 1, spaces.MultiDiscrete: 2}.get(type(space), dim)
    assert encode_actions(th.zeros(4, 5, n), space).shape == (4, 5, dim)


def test_categories_are_encoded_as_torch_does():
    generator = th.Generator().manual_seed(0)
    first, second = (th.randint(n, (4, 5, 1), generator=generator).float() for n in (2, 3))  # as the buffer stores them
    ones = [th.nn.functional.one_hot(part.long().squeeze(-1), n) for part, n in ((first, 2), (second, 3))]
    assert encode_actions(second, spaces.Discrete(3)).equal(ones[1].float())
    assert encode_actions(th.cat([first, second], -1), spaces.MultiDiscrete([2, 3])).equal(th.cat(ones, -1).float())
    assert one_hot(second.squeeze(0), 3).equal(ones[1].float())


def test_bits_are_floats_and_numbers_are_squashed():
    bits = encode_actions(th.tensor([[0, 1]]), spaces.MultiBinary(2))
    assert bits.tolist() == [[0.0, 1.0]] and bits.dtype == th.float32
    numbers = encode_actions(th.tensor([[-3, 100]]), BOX)
    assert numbers[0].tolist() == pytest.approx([-math.log(4), math.log(101)])


def test_symlog():
    x = [-1000.0, -1.0, 0.0, 1e-6, 2.0]
    expected = [-math.log(1001), -math.log(2), 0.0, 1e-6, math.log(3)]
    assert symlog(th.tensor(x)).tolist() == pytest.approx(expected, rel=1e-5)


def test_ages():
    encoder = AgeEncoder(True)
    encoded = encoder(th.tensor([[0.0, 1.0, 50.0], [999.0, 1000.0, 5000.0]]))
    assert encoded.shape == (2, 3, 2) and encoder.dim == 2
    expected = [0, math.log(2) / 2, math.log(51) / 2, math.log(1000) / 2, math.log(1001) / 2, math.log(5001) / 2]
    assert encoded[..., 0].flatten().tolist() == pytest.approx(expected)
    assert encoded[..., 1].flatten().tolist() == pytest.approx([0, 0.02, 1, 19.98, 20, 20])


def test_no_ages():
    encoder = PreviousStepEncoder(BOX, True, True, AgeEncoder(False))
    encoded = encoder(th.ones(2, 3, 2), th.ones(2, 3), th.ones(2, 3), None)
    assert encoded.shape == (2, 3, 3) and encoder.dim == 3 and AgeEncoder(False).dim == 0


def test_sinusoidal_ages_by_hand():
    encoder, ages = AgeEncoder("sinusoidal"), th.tensor([[0.0, 1.0, 37.0]])
    encoded = encoder(ages)
    assert encoded.shape == (1, 3, encoder.dim) and encoder.dim == 2 + 2 * len(PERIODS) and PERIODS[:2] == (4, 8)
    assert th.equal(encoded[..., :2], AgeEncoder(True)(ages))  # and beside them:
    for i, period in enumerate(PERIODS):
        angles = [2 * math.pi * age / period for age in (0, 1, 37)]
        assert encoded[0, :, 2 + i].tolist() == pytest.approx([math.sin(a) for a in angles], abs=1e-6)
        assert encoded[0, :, 2 + len(PERIODS) + i].tolist() == pytest.approx([math.cos(a) for a in angles], abs=1e-6)


def test_sinusoidal_ages_late_in_an_episode():
    """After 1,024,000 steps each circle has turned a whole number of times: float32 must not blur the encoding."""
    encoder, late = AgeEncoder("sinusoidal"), 1024.0 * 1000
    at_start, later = encoder(th.arange(50.0))[:, 2:], encoder(late + th.arange(50.0))[:, 2:]
    assert th.equal(at_start, later)


def test_a_linear_map_of_sinusoidal_ages_finds_a_mirrored_step():
    """Played back in reverse, step 51 + k asks for step 51 - k: the query is a linear map of its own encoding."""
    n = len(PERIODS)
    sin, cos = AgeEncoder("sinusoidal")(th.arange(103.0))[:, 2:].split(n, dim=1)
    turn = 2 * math.pi * 102 / th.tensor(PERIODS)  # s = 102 - t
    query = th.cat([turn.sin() * cos - turn.cos() * sin, turn.cos() * cos + turn.sin() * sin], dim=1)
    scores = query @ th.cat([sin, cos], dim=1).T  # [103, 103]
    assert th.equal(scores.argmax(dim=1), 102 - th.arange(103))


# --- previous action and reward, age ---

ACTIONS = th.tensor([[[1.0], [2.0], [0.0]]])
REWARDS = th.tensor([[2.0, -2.0, 5.0]])
AGES = th.tensor([[0.0, 1.0, 0.0]])
FIRST = th.tensor([[True, False, True]])
REWARD = [math.log(3), -math.log(3), math.log(6)]
AGE = [[0.0, 0.0], [math.log(2) / 2, 0.02], [0.0, 0.0]]


def previous_steps(first: th.Tensor | None, actions: bool, rewards: bool, ages: bool) -> list[list[float]]:
    encoder = PreviousStepEncoder(spaces.Discrete(3), actions, rewards, AgeEncoder(ages))
    encoded = encoder(ACTIONS, REWARDS, AGES, first)
    assert encoded.shape == (1, 3, encoder.dim) and encoded.dtype == th.float32
    return encoded[0].tolist()


def close(expected: list[list[float]]) -> list:
    return [pytest.approx(row, rel=1e-5) for row in expected]


def test_what_is_read_side_by_side():
    """Action, reward, age; action and reward are zero where nothing was before, the age is known"""
    hot = [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    everything = [[*hot[i], REWARD[i], *AGE[i]] for i in range(3)]
    assert previous_steps(None, True, True, True) == close(everything)
    masked = [[0.0] * 4 + AGE[0], everything[1], [0.0] * 4 + AGE[2]]
    assert previous_steps(FIRST, True, True, True) == close(masked)
    assert previous_steps(FIRST, True, False, False) == close([[0.0] * 3, hot[1], [0.0] * 3])
    assert previous_steps(FIRST, False, True, False) == close([[0.0], [REWARD[1]], [0.0]])
    assert previous_steps(~FIRST, False, True, True) == close([[REWARD[0], 0, 0], [0, *AGE[1]], [REWARD[2], 0, 0]])
    assert previous_steps(FIRST, False, False, True) == close(AGE)
    assert previous_steps(FIRST, True, False, True) == close([[0.0] * 5, [*hot[1], *AGE[1]], [0.0] * 5])
    assert previous_steps(FIRST, False, False, False) == [[], [], []]


def test_the_age_is_known_at_the_first_step_of_what_is_seen():
    """A first step is one without a step before; its age counts from where the episode began."""
    encoder = PreviousStepEncoder(spaces.Discrete(3), False, True, AgeEncoder(True))
    encoded = encoder(ACTIONS, REWARDS, th.full((1, 3), 50.0), th.ones((1, 3), dtype=th.bool))
    assert encoded[0, 0].tolist() == pytest.approx([0, math.log(51) / 2, 1])


def test_what_is_not_read_need_not_be_given():
    encoder = PreviousStepEncoder(spaces.Discrete(3), True, False, AgeEncoder(False))
    assert encoder(ACTIONS[0], None, AGES[0], None).tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]


def test_what_is_not_finite_before_an_episode_is_not_read():
    encoder = PreviousStepEncoder(BOX, True, True, AgeEncoder(False))
    encoded = encoder(th.full((1, 3, 2), float("nan")), th.full((1, 3), float("inf")), AGES, th.ones((1, 3), dtype=th.bool))
    assert encoded.abs().max() == 0


# --- stacked frames ---


def test_one_frame_is_the_step_itself():
    features = th.randn(2, 4, 3)
    assert stack_frames(features, th.zeros(2, 4), 0) is features


@pytest.mark.parametrize("n_previous", [1, 2, 3, 6])
def test_stacked_frames_by_hand(n_previous):
    """Longer than the window too; of each feature its past side by side, oldest first"""
    features, ids = th.randn(2, 4, 3), th.tensor([[0, 0, 0, 1], [-1, 2, 2, 2]])
    stacked = stack_frames(features, ids, n_previous)
    assert stacked.shape == (2, 4, 3 * (1 + n_previous))
    for n in range(2):
        for t in range(4):
            expected = features[n, t].tolist()
            for f in range(3):
                for k in range(t - n_previous, t):
                    expected.append(features[n, k, f].item() if k >= 0 and ids[n, k] == ids[n, t] else 0.0)
            assert stacked[n, t].tolist() == expected


def test_frames_of_another_episode_are_zero_whatever_they_are():
    features, ids = th.ones(1, 3, 1), th.tensor([[0, 1, 1]])
    features[0, 0] = float("nan")
    assert stack_frames(features, ids, 2)[0, 1:].tolist() == [[1, 0, 0], [1, 0, 1]]


def test_gradients_go_through_stacked_frames():
    features = th.zeros(1, 3, 1, requires_grad=True)
    stack_frames(features, th.tensor([[0, 0, 1]]), 1).sum().backward()
    assert features.grad.flatten().tolist() == [2, 1, 1]
