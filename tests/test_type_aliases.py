"""What passes between the modules."""

import pytest
import torch as th

from sb3_attention_ac.type_aliases import (
    EncoderOutput,
    TrajectoryWindows,
    TransitionSamples,
    WindowOutput,
    map_obs,
    split_batch,
)


def test_map_obs():
    assert map_obs(lambda x: x + 1, 1) == 2
    assert map_obs(lambda x, y: x * y, 2, 3) == 6
    assert map_obs(lambda x, y: x * y, {"a": 2, "b": 3}, {"b": 5, "a": 7}) == {"a": 14, "b": 15}


def test_single_steps():
    windows = TrajectoryWindows.of_single_steps(th.arange(6.0).reshape(2, 3), 4)
    assert windows.observations.tolist() == [[[0, 1, 2]], [[3, 4, 5]]]
    assert windows.previous_actions.tolist() == [[[0] * 4]] * 2 and windows.previous_rewards.tolist() == [[0]] * 2
    assert windows.episode_starts.tolist() == [[True]] * 2
    assert windows.episode_ids.tolist() == windows.ages.tolist() == windows.noise_ids.tolist() == [[0]] * 2
    assert windows.episode_ids.dtype == windows.noise_ids.dtype == th.int64 and windows.ages.dtype == th.float32
    parts = TrajectoryWindows.of_single_steps({"a": th.zeros(5, 2), "b": th.zeros(5)}, 1)
    assert parts.observations["a"].shape == (5, 1, 2) and parts.observations["b"].shape == (5, 1)
    assert parts.episode_ids.shape == (5, 1)


def numbered(noise: bool = True) -> TrajectoryWindows:
    steps = th.arange(5).expand(2, 5)
    observations = {"a": steps.unsqueeze(-1), "b": steps}
    return TrajectoryWindows(observations, steps.unsqueeze(-1), steps, steps > 2, steps, steps, steps if noise else None)


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize(("which", "expected"), [("first", [0, 1]), ("last", [3, 4])])
def test_first_and_last_steps(which, expected, noise):
    windows = getattr(numbered(noise), which)(2)
    for name in ("previous_rewards", "episode_ids", "ages"):
        assert getattr(windows, name).tolist() == [expected] * 2
    assert windows.observations["a"][..., 0].tolist() == windows.observations["b"].tolist() == [expected] * 2
    assert windows.previous_actions[..., 0].tolist() == [expected] * 2
    assert (windows.noise_ids is not None) == noise


def test_flat_observations():
    flat = numbered().flat_observations()
    assert flat["a"].shape == (10, 1) and flat["b"].tolist() == [0, 1, 2, 3, 4] * 2


def test_the_network_that_acts():
    actor, critic = EncoderOutput(th.zeros(1), th.zeros(1), None), EncoderOutput(th.ones(1), th.ones(1), None)
    assert WindowOutput(actor, critic, th.zeros(1)).stepped is actor
    assert WindowOutput(None, critic, th.zeros(1)).stepped is critic
    assert WindowOutput(actor, None, th.zeros(1)).stepped is actor
    with pytest.raises(AssertionError):
        _ = WindowOutput(None, None, th.zeros(1)).stepped


def test_split_batch():
    x = th.arange(5)
    assert [part.tolist() for part in split_batch(x, 2)] == [[0, 1], [2, 3], [4]]
    assert [part["b"].tolist() for part in split_batch({"a": x, "b": -x}, 3)] == [[0, -1, -2], [-3, -4]]
    batch = TransitionSamples({"a": x}, x, -x, x, x, x + 1, None, None)
    parts = split_batch(batch, 2)
    assert all(isinstance(part, TransitionSamples) for part in parts) and len(parts) == 3
    assert [part.returns.tolist() for part in parts] == [[1, 2], [3, 4], [5]]
    assert [part.observations["a"].tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert all(part.action_masks is None and part.logit_offsets is None for part in parts)
    assert split_batch(batch._replace(action_masks=x > 2), 4)[0].action_masks.tolist() == [False, False, False, True]
    assert parts[0].returns.data_ptr() == batch.returns.data_ptr()  # nothing is copied
    with pytest.raises(ValueError):
        split_batch({"a": x, "b": th.arange(2)}, 2)
