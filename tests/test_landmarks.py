"""Landmarks: the first steps of an episode stay readable, and acting sees those that training sees."""

from typing import Any

import numpy as np
import pytest
import torch as th
from test_buffers import add_step, make
from trajectories import ACTION_SPACES, fill, make_buffer, make_policy, recorded

from sb3_attention_ac.acting import SteppedNetwork
from sb3_attention_ac.auxiliary.next_step_prediction import LARGEST_SURPRISE
from sb3_attention_ac.evaluation import evaluate_actions
from sb3_attention_ac.landmarks import SURPRISE_DECAY, choose
from sb3_attention_ac.networks.kv_cache import IncrementalEncoder
from sb3_attention_ac.networks.preprocessing import encode_actions, stack_frames
from sb3_attention_ac.type_aliases import TrajectoryWindows

ACTORS = {
    "memory actor": {"memory_actor": True},
    "shared, two layers": {"memory_actor": True, "share_encoder": True, "n_layers": 2},
    "Q_att": {"attention_q": True},
    "surprise": {"memory_actor": True, "landmark_rule": "surprise"},
}


# What a buffer's windows hold is tested in test_buffers.py, a KV cache's in test_kv_cache.py


ROLLOUTS: list[dict[str, Any]] = [
    {"n_steps": 13, "n_envs": 2, "context_length": 2, "chunk_length": 3, "episode_end": 0.05},
    {"n_steps": 8, "n_envs": 3, "context_length": 3, "chunk_length": 4, "episode_end": 0.15},
    {"n_steps": 7, "n_envs": 1, "context_length": 1, "chunk_length": None, "episode_end": 0.0},
]


def check_first_ratio(n_landmarks: int, actor: str, rollout: dict[str, Any]) -> None:
    """Acting step by step gives the log probabilities and offsets of one pass, over several rollouts."""
    rng = np.random.default_rng(0)
    options = {"n_landmarks": n_landmarks, "chunk_length": rollout["chunk_length"], **ACTORS[actor]}
    policy = make_policy(rollout["context_length"], ACTION_SPACES["Discrete"], **options)
    if policy.attention_q is not None:
        policy.attention_q.evidence.fill_(5.0)
    buffer, outputs = make_buffer(policy, rollout["n_steps"], rollout["n_envs"]), []
    assert buffer.n_landmarks == n_landmarks
    starts = np.ones(rollout["n_envs"], dtype=bool)
    for _ in range(3):
        starts = fill(buffer, rng, starts, rollout["episode_end"], recorded(policy.start_acting, outputs))
        for batch in buffer.get_windows(4):
            with th.no_grad():
                encoded = policy.encode_windows(batch.windows, batch.actions.shape[1])
                if policy.memory_actor:
                    log_prob = evaluate_actions(policy, encoded, batch)[0]
                    th.testing.assert_close(log_prob, batch.old_log_prob, rtol=0, atol=1e-4)
                else:
                    weights = policy.attention_q.head(encoded.critic.latent)
                    th.testing.assert_close(
                        th.nn.functional.normalize(weights, dim=-1),
                        th.nn.functional.normalize(batch.logit_offsets, dim=-1),
                        rtol=0,
                        atol=1e-3,
                    )


@pytest.mark.parametrize("actor", ACTORS)
@pytest.mark.parametrize("n_landmarks", [2, 3])
@pytest.mark.parametrize("rollout", ROLLOUTS)
def test_first_ratio_is_one(n_landmarks, actor, rollout):
    check_first_ratio(n_landmarks, actor, rollout)


@pytest.mark.parametrize("rollout", ROLLOUTS)
def test_acting_chooses_what_the_buffer_chooses(rollout, monkeypatch):
    """By surprise, to the last bit, while parameters change between rollouts"""
    chosen, original = [], IncrementalEncoder._choose_landmarks

    def noting(self, cache, rows):
        original(self, cache, rows)
        chosen.append((cache.landmark_ages.clone(), cache.surprises[:, : self.n_landmarks].clone()))

    monkeypatch.setattr(IncrementalEncoder, "_choose_landmarks", noting)
    rng, compared = np.random.default_rng(1), 0
    options = {"memory_actor": True, "n_landmarks": 3, "landmark_rule": "surprise", "chunk_length": rollout["chunk_length"]}
    policy = make_policy(rollout["context_length"], ACTION_SPACES["Discrete"], **options)
    buffer, starts = make_buffer(policy, rollout["n_steps"], rollout["n_envs"]), np.ones(rollout["n_envs"], dtype=bool)
    for _ in range(4):
        with th.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.05 * th.randn_like(parameter))
        chosen.clear()
        starts = fill(buffer, rng, starts, rollout["episode_end"], policy.start_acting)
        landmarks, ids = buffer.tensors().landmarks, th.as_tensor(buffer.storage.arrays["episode_ids"])
        for chunk, (ages, surprises) in enumerate(chosen, start=1):
            row = buffer.n_history + chunk * buffer.chunk_length
            goes_on = (ids[row] == ids[row - 1])[:, None]  # else an episode starts, which forgets them
            is_there = landmarks.episode_ids[chunk] == ids[row - 1][:, None]
            assert th.equal((ages >= 0) & goes_on, is_there & goes_on)
            compared += int((is_there & goes_on).sum())
            assert th.equal(ages[is_there & goes_on], landmarks.ages[chunk][is_there & goes_on])
            assert th.equal(surprises[is_there & goes_on], landmarks.surprises[chunk][is_there & goes_on])
    assert compared > 5 or buffer.chunk_length == rollout["n_steps"]


def test_a_stale_landmark_is_found(monkeypatch):
    """The test above fails if acting keeps other steps than training."""
    prefill = SteppedNetwork.prefill

    def without(self, windows):
        cache = prefill(self, windows)
        cache.landmark_ages.fill_(-1.0)
        return cache

    monkeypatch.setattr(SteppedNetwork, "prefill", without)
    with pytest.raises(AssertionError):
        check_first_ratio(2, "memory actor", ROLLOUTS[0])


@pytest.mark.parametrize("n_landmarks", [0, 2])
@pytest.mark.parametrize("actor", [{}, {"memory_actor": True}])
@th.no_grad()
def test_how_far_back_a_step_sees(n_landmarks, actor):
    """With a context of two steps, a chunk of two and two landmarks, step 8 sees steps 0, 1, 6 and 7."""
    policy = make_policy(2, n_landmarks=n_landmarks, chunk_length=2, local_window=1, **actor)
    seen = []
    for changed in range(10):
        buffer, rng = make_buffer(policy, 10, 1), np.random.default_rng(0)
        buffer.reset()
        for step in range(10):
            obs = rng.normal(size=(1, 3)) + float(step == changed)
            buffer.add(obs, np.zeros(1), np.zeros(1), np.array([step == 0]))
        windows, _ = buffer.windows(np.array([8]), np.array([0]), 2)
        seen.append(policy.encode_windows(windows, 2).stepped.latent[0, 0])
    different = {step for step in range(9) if not th.equal(seen[step], seen[9])}  # step 9 is not seen
    assert different == ({0, 1, 6, 7, 8} if n_landmarks else {6, 7, 8})


def test_what_is_chosen_while_acting():
    """The lowest ages of those of the episode, the others last; ties in their order"""
    ages = th.tensor([[5.0, 2.0, -1.0, 3.0], [7.0, 0.0, 1.0, 2.0], [4.0, 4.0, 4.0, 1.0]])
    valid = th.tensor([[True, True, False, True], [False, True, True, True], [True, False, True, False]])
    assert choose(ages, None, valid, 2).tolist() == [[1, 3], [1, 2], [0, 2]]
    assert choose(ages, None, valid, 4).tolist() == [[1, 3, 0, 2], [1, 2, 3, 0], [0, 2, 1, 3]]


def test_landmarks_have_no_neighbours():
    """Their stacked frames are empty, and they are no frames of the steps after them."""
    features, ids = th.arange(1.0, 6.0).reshape(1, 5, 1), th.zeros((1, 5), dtype=th.long)
    assert stack_frames(features, ids, 2, n_landmarks=2)[0].tolist() == [
        [1, 0, 0],
        [2, 0, 0],
        [3, 0, 0],
        [4, 0, 3],
        [5, 3, 4],
    ]
    assert stack_frames(features, ids, 0, n_landmarks=2) is features


def test_a_rollout_that_was_stopped_leaves_its_landmarks():
    """Rollouts of six steps in chunks of two, of which five were taken: the next one goes on from there."""
    buffer = make(n_steps=6, n_envs=1, n_context=1, chunk_length=2, n_landmarks=2)
    buffer.reset()
    for step in range(5):
        add_step(buffer, step, np.array([step == 0]))
    buffer.reset()
    for step in range(5, 11):
        add_step(buffer, step, np.array([False]))
    windows, _ = buffer.windows(np.array([0]), np.array([0]), 2)
    assert windows.n_landmarks == 2
    assert windows.observations.flatten().tolist() == [10, 20, 50, 60, 70]
    assert windows.ages.tolist() == [[0, 1, 4, 5, 6]] and windows.episode_ids.tolist() == [[1] * 5]


@pytest.mark.parametrize(("n_steps", "chunk_length", "n_chunks"), [(6, 2, 3), (5, 2, 3), (4, 4, 1)])
def test_each_chunk_has_its_landmarks(n_steps, chunk_length, n_chunks):
    buffer = make(n_steps=n_steps, n_envs=2, n_context=1, chunk_length=chunk_length, n_landmarks=3)
    buffer.reset()
    for step in range(n_steps):
        add_step(buffer, step, np.full(2, step == 0))
    landmarks = buffer.tensors().landmarks
    assert landmarks.episode_ids.shape == (n_chunks, 2, 3) and landmarks.previous_actions.shape == (n_chunks, 2, 3, 2)
    assert buffer.n_history == 1 + 1 + chunk_length


def test_windows_keep_the_number_of_their_landmarks():
    ids = th.zeros((2, 5), dtype=th.long)
    nothing = th.zeros(2, 5)
    column = nothing.unsqueeze(-1)
    windows = TrajectoryWindows(column, column, nothing, nothing > 0, ids, nothing, n_landmarks=2)
    assert windows.first(4).n_landmarks == 2 and windows.last(2).n_landmarks == 0
    assert windows.map(lambda x, y: th.cat([x, y], 1), windows).episode_ids.shape == (2, 10)


def test_the_buffer_chooses_by_surprise():
    """Rollouts of six steps in chunks of two, a context of one: the first step, and the most surprising one until it fades"""
    buffer = make(n_steps=6, n_envs=1, n_context=1, chunk_length=2, n_landmarks=2, landmark_rule="surprise")
    surprises = [np.inf, 1.0, 5.0, 2.0, 4.6, 4.0, 4.1, 0.0, 0.0, 0.0, 0.0, 0.0]
    for step, surprise in enumerate(surprises):
        if step % 6 == 0:
            buffer.reset()
        add_step(buffer, step, np.array([step == 0]), surprise=th.tensor([surprise]))
    landmarks = buffer.tensors().landmarks  # of the chunks that begin with steps 6, 8 and 10
    assert landmarks.ages[:, 0].tolist() == [[0, 4], [0, 4], [0, 4]]
    expected = [np.inf, 4.6 * SURPRISE_DECAY], [np.inf, 4.6 * SURPRISE_DECAY**2], [np.inf, 4.6 * SURPRISE_DECAY**3]
    np.testing.assert_allclose(landmarks.surprises[:, 0], expected, rtol=1e-6)


def test_an_observation_is_as_surprising_as_the_error_of_its_prediction():
    policy = make_policy(3, ACTION_SPACES["Discrete"], memory_actor=True, n_landmarks=2, landmark_rule="surprise")
    head = policy.next_step_prediction
    head.features_normalizer.running_mean.copy_(th.tensor([1.0, -2.0, 0.0]))
    head.features_normalizer.running_var.copy_(th.tensor([4.0, 1.0, 0.25]))
    hidden, before, after = th.randn(5, 8), th.randn(5, 3), th.randn(5, 3)
    actions = th.tensor([[0.0], [1.0], [2.0], [1.0], [0.0]])
    encoded = encode_actions(actions, policy.action_space)
    expected = head.predict(hidden.unsqueeze(1), before.unsqueeze(1), encoded.unsqueeze(1)).features.squeeze(1)
    squared = ((expected - after) / head.features_normalizer.std).square()
    surprises = (1 / (1 / squared + 1 / LARGEST_SURPRISE)).mean(1)
    th.testing.assert_close(policy._surprise(hidden, before, after, actions), surprises)
    # One that has never changed
    head.features_normalizer.running_var[1] = 0.0
    surprises = policy._surprise(hidden, before, after, actions)
    assert surprises.isfinite().all() and surprises.max() < LARGEST_SURPRISE and len(surprises.unique()) == 5


def test_equal_surprises_are_chosen_by_age():
    ages = th.tensor([[7.0, 3.0, 5.0, 2.0, 0.0]])
    surprises = th.tensor([[4.0, 4.0, 4.0, 0.0, th.inf]])
    chosen = [choose(ages, surprises, ages >= 0, k).tolist()[0] for k in (1, 2, 3, 4)]
    assert chosen == [[4], [1, 4], [1, 2, 4], [0, 1, 2, 4]]


def test_landmarks_by_surprise_are_in_the_order_of_the_episode():
    """After empty places, so that positions tell which came later"""
    ages, surprises = th.tensor([[0.0, 4.0, -1.0, 9.0, 10.0, 11.0]]), th.tensor([[th.inf, 1.0, 7.0, 5.0, 0.5, 6.0]])
    assert choose(ages, surprises, ages >= 0, 3).tolist() == [[0, 3, 5]]
    assert choose(ages, None, ages >= 0, 3).tolist() == [[0, 1, 3]]
    # Where surprises are equal the earlier step; ages count modulo 1,000
    late, equal = th.tensor([[999.0, 1000.0, 1001.0]]), th.ones(1, 3)
    assert choose(late, equal, late >= 0, 1).tolist() == [[1]]
    assert choose(late, equal, late >= 0, 2).tolist() == [[1, 2]]
    # Empty places come first, wherever they were
    assert choose(th.tensor([[0.0, -1.0]]), th.ones(1, 2), th.tensor([[True, False]]), 2).tolist() == [[1, 0]]
    assert choose(ages, surprises, ages >= 9, 4)[0, 1:].tolist() == [3, 4, 5]


def test_a_buffer_is_told_what_it_needs():
    with pytest.raises(ValueError, match=r"landmark_rule='last'.*'first', 'surprise'"):
        make(landmark_rule="last")
    buffer = make(n_landmarks=2, landmark_rule="surprise")
    buffer.reset()
    with pytest.raises(ValueError, match=r"^landmark_rule='surprise' needs to be told surprise"):
        add_step(buffer, 0, np.ones(2))


def test_landmarks_need_attention():
    with pytest.raises(ValueError, match="n_landmarks=2 needs attention, but n_layers=0"):
        make_policy(3, n_landmarks=2, n_layers=0)
    with pytest.raises(ValueError, match="n_landmarks=-1"):
        make_policy(3, n_landmarks=-1)
