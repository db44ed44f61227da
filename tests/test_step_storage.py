"""Filling the rollout buffer: what is kept of a step, of the steps before a rollout, and how."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from test_buffers import NUMBERS, add_step, filled, make

from sb3_attention_ac.step_storage import NO_EPISODE, StepStorage, stored_dtype


def test_values_and_log_probabilities_of_a_step():
    buffer = make(n_steps=2)
    buffer.reset()
    value, log_prob = th.tensor([[1.0], [2.0]], requires_grad=True), th.tensor([-1.0, -2.0], requires_grad=True)
    add_step(buffer, 0, np.ones(2), value=value, log_prob=log_prob)
    add_step(buffer, 1, np.zeros(2))
    assert buffer.values.tolist() == [[1, 2], [0, 0]] and buffer.log_probs.tolist() == [[-1, -2], [0, 0]]
    assert (buffer.action_masks, buffer.logit_offsets) == (None, None)
    assert buffer.rewards.tolist() == [[10.25, 11.25], [20.25, 21.25]]
    assert buffer.observations[..., 0].tolist() == [[10, 11], [20, 21]]
    assert buffer.episode_starts.tolist() == [[1, 1], [0, 0]]
    buffer.reset()
    for name in ("values", "mlp_values", "log_probs", "advantages", "returns"):
        array = getattr(buffer, name)
        assert array.dtype == np.float32 and array.shape == (2, 2) and not array.any()


def test_what_not_every_step_has_is_nothing_before():
    """Q_att that opens in mid-rollout; masks keep their type"""
    buffer = make(n_steps=3)
    buffer.reset()
    add_step(buffer, 0, np.ones(2))
    masks, offsets = th.tensor([[True, False], [True, True]]), th.tensor([[0.5, 1.0], [2.0, 3.0]])
    add_step(buffer, 1, np.zeros(2), action_masks=masks, logit_offsets=offsets)
    add_step(buffer, 2, np.zeros(2), logit_offsets=offsets + 1)
    assert buffer.action_masks.dtype == bool and buffer.action_masks.shape == (3, 2, 2)
    assert buffer.action_masks.tolist() == [[[False, False]] * 2, masks.tolist(), [[False, False]] * 2]
    assert buffer.logit_offsets.tolist() == [[[0, 0]] * 2, offsets.tolist(), (offsets + 1).tolist()]
    assert buffer.logit_offsets.dtype == np.float32
    buffer.reset()
    assert (buffer.action_masks, buffer.logit_offsets) == (None, None)


def test_a_rollout_that_was_stopped_is_still_a_past():
    """A callback may stop after some steps: the rollout after has those as its context."""
    buffer = make(n_steps=4, n_envs=1, n_context=3)
    buffer.reset()
    for step in range(2):
        add_step(buffer, step, np.array([step == 0]))
    buffer.reset()
    for step in range(2, 6):
        add_step(buffer, step, np.array([False]))
    windows, _ = buffer.windows(np.array([0]), np.array([0]), 2)
    assert windows.observations.flatten().tolist() == [10, 10, 20, 30, 40]
    assert windows.episode_ids.tolist() == [[-1, 1, 1, 1, 1]]
    assert windows.ages.tolist() == [[0, 0, 1, 2, 3]]


def test_an_empty_rollout_is_no_past():
    buffer = filled(np.array([[True], [False]]), n_steps=2)
    buffer.reset()
    buffer.reset()  # nothing was added
    for step in range(2, 4):
        add_step(buffer, step, np.array([False]))
    windows, _ = buffer.windows(np.array([0]), np.array([0]), 2)
    assert windows.observations.flatten().tolist() == [10, 10, 20, 30, 40]


def test_rows_before_the_first_step_hold_its_observation():
    """Of each environment its own: a features extractor may not be finite on zeros."""
    buffer = make(n_steps=2, n_context=3)
    buffer.reset()
    add_step(buffer, 0, np.array([True, False]))
    observations = buffer.tensors().observations[..., 0]
    assert observations[:5].tolist() == [[10, 11]] * 5
    buffer.reset()
    add_step(buffer, 1, np.zeros(2))
    assert buffer.tensors().observations[:5, :, 0].tolist() == [[10, 11]] * 4 + [[20, 21]]
    assert buffer.tensors().episode_ids[:5].tolist() == [[-1, -1]] * 3 + [[1, 0], [1, 0]]


def test_arrays_of_a_rollout_are_fresh():
    """Tensors of the rollout before may still be in use."""
    buffer = filled(np.array([[True], [False]]), n_steps=2)
    before = buffer.tensors()
    kept = before.observations.clone(), before.rewards.clone()
    buffer.reset()
    add_step(buffer, 7, np.array([True]))
    assert th.equal(before.observations, kept[0]) and th.equal(before.rewards, kept[1])
    assert buffer.tensors() is not before


def test_tensors_are_transferred_once():
    buffer = filled(np.ones((2, 1)), n_steps=2)
    assert buffer.tensors() is buffer.tensors()
    assert buffer.target("returns") is buffer.target("returns")
    assert buffer.target("action_masks") is None
    buffer.compute_returns_and_advantage(th.zeros(1), np.zeros(1))
    assert buffer.target("returns").flatten().tolist() == buffer.returns.flatten().tolist() != [0, 0]


@pytest.mark.parametrize(
    ("space", "dtype"),
    [
        (spaces.Box(-1, 1, (3,)), np.float32),
        (spaces.Box(-1, 1, (3,), dtype=np.float64), np.float64),
        (spaces.Box(-1, 1, (3,), dtype=np.float16), np.float32),  # a Gaussian policy's actions are finer
        (spaces.Box(0, 9, (3,), dtype=np.int64), np.float32),  # VecNormalize makes fractions of them
        (spaces.Box(0, 255, (36, 36, 1), dtype=np.uint8), np.uint8),
        (spaces.Discrete(3), np.int64),
        (spaces.MultiBinary(3), np.int8),
    ],
    ids=repr,
)
def test_how_spaces_are_stored(space, dtype):
    assert stored_dtype(space) == dtype


def test_observations_in_parts():
    """Entries that are not stored may be given; scalars are stored as [n_envs, 1]."""
    space = spaces.Dict({"image": spaces.Box(0, 255, (8, 8, 3), dtype=np.uint8), "kind": spaces.Discrete(4)})
    buffer = make(n_steps=2, n_context=1, observation_space=space, action_space=spaces.Discrete(5))
    buffer.reset()
    for step in range(2):
        obs = {"image": np.full((2, 8, 8, 3), 10 * step + 1), "kind": np.array([step, 3]), "more": np.zeros(2)}
        buffer.add(obs, np.array([step, 4]), np.zeros(2), np.ones(2) * (step == 0))
    buffer.add_terminal_observation(1, {"image": np.full((8, 8, 3), 99), "kind": np.array(2)})
    windows, actions = buffer.windows(np.array([0, 0]), np.arange(2), 2)
    assert set(windows.observations) == {"image", "kind"} and windows.observations["image"].dtype == th.uint8
    assert windows.observations["image"][0, :, 0, 0, 0].tolist() == [1, 1, 11]
    assert windows.observations["kind"][..., 0].tolist() == [[0, 0, 1], [3, 3, 3]]
    assert actions[..., 0].tolist() == [[0, 1], [4, 4]] and actions.dtype == th.float32
    stacked = {"image": np.full((1, 8, 8, 3), 99), "kind": np.array([2])}
    ended = buffer.bootstrap_windows(np.array([1]), np.array([1]), stacked)
    assert ended.observations["image"][0, :, 0, 0, 0].tolist() == [11, 99]
    assert ended.observations["kind"].tolist() == [[[3], [2]]]
    samples = buffer.transition_samples(th.tensor([3, 0]))
    assert samples.observations["kind"].tolist() == [[3], [0]]


def test_storage_knows_its_rows():
    storage = StepStorage(2, 3, 4, NUMBERS, spaces.Discrete(2), held_noise=True)
    assert (storage.n_history, storage.n_rows, storage.n_envs, storage.noise_id) == (2, 5, 4, 0)
    assert storage.arrays["actions"].shape == (5, 4, 1) and storage.arrays["noise_ids"].dtype == np.int64
    assert (storage.arrays["episode_ids"] == NO_EPISODE).all() and storage.arrays["episode_ids"].dtype == np.int64
    rollout = storage.rollout()
    rollout["rewards"][0, 1] = 7.0
    assert storage.arrays["rewards"][2, 1] == 7.0 and rollout["rewards"].shape == (3, 4)
    tensors = storage.tensors(th.device("cpu"), 3)
    assert tensors.rewards.shape == (3, 4) and tensors.actions.dtype == th.float32
    assert tensors.episode_starts.dtype == th.bool
    assert "noise_ids" not in StepStorage(2, 3, 4, NUMBERS, spaces.Discrete(2), held_noise=False).arrays


def test_types_of_what_is_stored():
    storage = StepStorage(2, 3, 1, NUMBERS, spaces.MultiDiscrete([3, 4]), held_noise=True)
    types = {name: array.dtype for name, array in storage.arrays.items()}
    assert types == {
        "observations": np.float32,
        "actions": np.int64,
        "rewards": np.float32,
        "episode_starts": np.float32,
        "episode_ids": np.int64,
        "ages": np.float32,
        "noise_ids": np.int64,
    }


def test_entries_that_the_space_does_not_know_are_left_out():
    """A wrapper may add entries to an observation, as SB3's HER does"""
    storage = StepStorage(1, 2, 1, spaces.Dict({"a": NUMBERS}), spaces.Discrete(2), held_noise=False)
    storage.add(0, {"more": np.zeros((1, 9)), "a": np.full((1, 1), 7.0)}, np.zeros(1), np.zeros(1), np.ones(1))
    assert storage.arrays["observations"].keys() == {"a"}
    assert storage.arrays["observations"]["a"].ravel().tolist() == [7, 7, 0]


def test_truth_values_are_stored_as_floats_but_bits_as_they_are():
    """VecNormalize makes fractions of a Box of them, and the policy acts on those"""
    assert stored_dtype(spaces.Box(0, 1, (3,), np.bool_)) == np.float32
    assert stored_dtype(spaces.MultiBinary(3)) == np.int8
