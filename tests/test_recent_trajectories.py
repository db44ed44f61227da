"""What the self-supervised loss draws from: windows around steps of the most recent trajectories."""

import numpy as np
import pytest
import torch as th
from trajectories import fill, make_buffer, make_policy

from sb3_attention_ac.auxiliary.recent_trajectories import RecentTrajectories, trajectory_recency


def test_trajectory_recency():
    episode_ids = np.array([[3, 0], [3, 1], [4, 1], [4, 1], [5, 1]])  # ends: 3 at 1, 4 at 3, 5 at 4; 0 at 0, 1 at 4
    recency, count = trajectory_recency(episode_ids)
    assert count == 5
    assert recency[:, 0].tolist() == [3, 3, 2, 2, 0]  # of those that end together, the first environment's comes first
    assert recency[:, 1].tolist() == [4, 1, 1, 1, 1]


def test_recency_of_one_trajectory():
    recency, count = trajectory_recency(np.full((3, 1), 7))
    assert recency.tolist() == [[0], [0], [0]] and count == 1


@pytest.mark.parametrize("n_trajectories", [0, 1, 3, 20])
def test_draws_from_the_most_recent_trajectories(n_trajectories):
    recent = RecentTrajectories(n_trajectories)
    buffer, rng, starts = make_buffer(make_policy(4), 6, 2), np.random.default_rng(0), np.ones(2, dtype=bool)
    counts = []
    for rollout in range(8):
        starts = fill(buffer, rng, starts, 0.3)
        buffer.rewards[:] = rollout
        buffer.returns = np.full_like(buffer.values, rollout)
        recent.add(buffer)
        counts.append(trajectory_recency(buffer.episode_ids)[1])
    seen = set()
    for _ in range(200):
        batch = recent.sample(4, 6)
        seen |= {int(r) for r in batch.returns.unique()}
        assert batch.eligible.any()
    needed = next(k for k in range(1, 9) if k == 8 or sum(counts[-k:]) >= max(n_trajectories, 1))
    assert seen == set(range(8 - needed, 8))
    assert len(recent._past) == needed


def test_only_steps_of_trajectories_in_reach_may_be_masked():
    """Two trajectories in each rollout of six steps, that end at steps 2 and 5; of the older rollout one is in reach."""
    recent, buffer = RecentTrajectories(3), make_buffer(make_policy(4), 6, 1)
    for rollout in range(2):
        buffer.reset()
        for step in range(6):
            args = np.zeros((1, 3)), np.zeros(1), np.array([10.0 * rollout + step]), np.array([step % 3 == 0])
            buffer.add(*args)
        buffer.returns = buffer.rewards + 100
        recent.add(buffer)
    n_of_old, picked = 0, set()
    for _ in range(300):
        batch = recent.sample(1, 2)
        assert batch.windows.episode_ids.shape == batch.actions.shape[:2] == (1, 2)
        rewards = batch.rewards[0]
        assert rewards[1] == rewards[0] + 1
        assert batch.returns.equal(batch.rewards + 100)
        is_old = bool(rewards.max() < 10)
        assert batch.eligible[0].tolist() == [(r >= 3 if is_old else True) for r in rewards.tolist()]
        assert batch.eligible.any()
        # The windows hold what came before: a_{t-1}, r_{t-1}, whatever rollout that was in
        assert batch.windows.previous_rewards[0, 1] == rewards[0]
        first = rewards[0].item()
        before = {0.0: 0.0, 10.0: 5.0}.get(first, first - 1)
        assert batch.windows.previous_rewards[0, 0].item() == before
        assert batch.windows.episode_starts[0].tolist() == [(r % 10) % 3 == 0 for r in rewards.tolist()]
        picked |= {(is_old, int(r % 10)) for r in rewards[batch.eligible[0]].tolist()}
        n_of_old += is_old
    assert n_of_old / 300 == pytest.approx(1 / 3, abs=0.08)  # in proportion to the trajectories in reach
    assert picked == {(True, 3), (True, 4), (True, 5), *((False, step) for step in range(6))}


def test_windows_are_as_long_as_a_rollout_at_most():
    recent, buffer = RecentTrajectories(0), make_buffer(make_policy(4), 6, 1)
    fill(buffer, np.random.default_rng(0), np.ones(1, dtype=bool), 0.3)
    recent.add(buffer)
    batch = recent.sample(5, 100)
    assert batch.windows.previous_rewards.shape == (5, 6)
    assert batch.rewards.tolist() == [buffer.rewards[:, 0].tolist()] * 5


def test_windows_lie_around_the_step_that_was_drawn():
    """Each place in a window is as likely as another; at the ends of the rollout windows are moved inside."""
    recent = RecentTrajectories(1)
    buffer = make_buffer(make_policy(4), 9, 1)
    buffer.reset()
    for step in range(9):  # the last trajectory is step 8 alone
        buffer.add(np.zeros((1, 3)), np.zeros(1), np.array([float(step)]), np.array([step in (0, 8)]))
    recent.add(buffer)
    batch = recent.sample(50, 3)
    assert batch.rewards.tolist() == [[6.0, 7.0, 8.0]] * 50
    assert batch.eligible.tolist() == [[False, False, True]] * 50
    recent = RecentTrajectories(2)
    recent.add(buffer)
    firsts = recent.sample(4000, 3).rewards[:, 0].long()
    counts = th.bincount(firsts, minlength=7).float() / 4000
    # A step of nine, and one of three places for it: the ends gather what would lie outside
    assert counts.tolist() == pytest.approx([6 / 27, 3 / 27, 3 / 27, 3 / 27, 3 / 27, 3 / 27, 6 / 27], abs=0.03)


def test_later_rollouts_do_not_change_what_was_added():
    """The buffer takes new arrays for each rollout."""
    recent = RecentTrajectories(100)
    buffer, rng = make_buffer(make_policy(4), 6, 2), np.random.default_rng(0)
    starts = fill(buffer, rng, np.ones(2, dtype=bool), 0.3)
    buffer.returns = buffer.rewards.copy()
    recent.add(buffer)
    before = [part.clone() for part in recent._past[0].rollout if isinstance(part, th.Tensor)]
    fill(buffer, rng, starts, 0.3)
    recent.add(buffer)
    after = [part for part in recent._past[0].rollout if isinstance(part, th.Tensor)]
    assert len(before) == len(after) == 6 and all(map(th.equal, before, after))
