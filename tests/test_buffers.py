"""The rollout buffer: what goes in step by step comes out as transitions and as windows with their context."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.step_storage import NO_EPISODE

NUMBERS = spaces.Box(-1e6, 1e6, (1,))
ACTIONS = spaces.Box(-1e6, 1e6, (2,))


def make(n_steps=5, n_envs=2, n_context=3, chunk_length=2, action_space=ACTIONS, **options) -> TrajectoryRolloutBuffer:
    options = {"observation_space": NUMBERS, "device": "cpu", **options}
    return TrajectoryRolloutBuffer(
        n_steps, action_space=action_space, n_envs=n_envs, n_context=n_context, chunk_length=chunk_length, **options
    )


def number(step: int, env: int) -> float:
    """What stands for the observation of a step, counted over rollouts; its action and reward are made of it"""
    return 10.0 * (step + 1) + env


def add_step(buffer: TrajectoryRolloutBuffer, step: int, starts: np.ndarray, **more) -> None:
    obs = np.array([[number(step, env)] for env in range(buffer.n_envs)])
    buffer.add(obs, np.concatenate([obs + 0.5, -obs], axis=1), obs[:, 0] + 0.25, starts, **more)


def filled(starts: np.ndarray, noise_every: int = 0, **options) -> TrajectoryRolloutBuffer:
    """Rollout after rollout, until the steps are used up; noise is sampled anew every few steps of a rollout"""
    buffer = make(n_envs=starts.shape[1], **options)
    for step, start in enumerate(starts):
        k = step % buffer.buffer_size
        if k == 0:
            buffer.reset()
        if noise_every and k % noise_every == 0:
            buffer.start_noise()
        add_step(buffer, step, start)
    return buffer


@pytest.mark.parametrize("given", ["changed", "replaced"])
def test_what_a_callback_changes_is_read_again(given):
    buffer = filled(np.zeros((5, 2)))
    before = buffer.tensors().rewards.clone()
    own = buffer.storage.arrays["rewards"]
    if given == "changed":
        buffer.rewards += 1
    else:
        buffer.rewards = buffer.rewards + 1
    buffer.reload()
    assert (buffer.tensors().rewards - before)[-5:].eq(1).all() and buffer.storage.arrays["rewards"] is own


class Own(TrajectoryRolloutBuffer):
    """Keeps rewards in doubles"""

    def reset(self) -> None:
        super().reset()
        self.rewards = np.zeros((self.buffer_size, self.n_envs))


def test_arrays_that_are_put_in_the_place_of_views_get_the_steps_too():
    """Of a subclass, by another dtype, turned around, and in the middle of a rollout"""
    space = spaces.Dict({"x": spaces.Box(-9, 9, (1,)), "y": spaces.Discrete(4)})
    buffer = Own(6, space, spaces.Discrete(3), n_envs=1, n_context=1)
    buffer.reset()
    for step in range(6):
        obs = {"x": np.array([[step]]), "y": np.array([step % 4])}
        buffer.add(obs, np.array([[1]]), np.array([step + 0.5]), np.array([step in (0, 3)]))
        if step == 2:
            buffer.observations["y"] = buffer.observations["y"] * 1.0  # floats for whole numbers
            buffer.episode_starts = buffer.episode_starts.copy()
            buffer.actions = np.full_like(buffer.actions, 2)
            buffer.rewards = buffer.rewards * 2
    buffer.rewards = buffer.rewards[::-1]
    data = buffer.tensors()
    assert data.rewards[-6:, 0].tolist() == [5.5, 4.5, 3.5, 5, 3, 1] == buffer.rewards[:, 0].tolist()
    assert data.observations["x"][-6:].flatten().tolist() == [*range(6)]
    assert data.observations["y"][-6:].flatten().tolist() == [0, 1, 2, 3, 0, 1]
    assert data.actions[-6:].flatten().tolist() == [2, 2, 2, 1, 1, 1]
    assert buffer.episode_starts[:, 0].tolist() == data.episode_starts[-6:, 0].tolist() == [1, 0, 0, 1, 0, 0]


def test_what_was_put_in_the_place_of_a_view_is_the_next_rollouts_context():
    """Without a look at the tensors in between"""
    buffer = filled(np.zeros((5, 2)))
    buffer.rewards = buffer.rewards + 1
    expected = buffer.rewards[-1].tolist()
    buffer.reload()
    buffer.reset()
    assert buffer.storage.arrays["rewards"][buffer.n_history - 1].tolist() == expected


def test_landmarks_are_what_the_steps_have_become():
    buffer = filled(np.zeros((8, 2)), n_steps=8, n_context=1, chunk_length=2, n_landmarks=2)
    buffer.tensors()
    buffer.rewards[:] = 7
    buffer.observations[:] = 9
    buffer.reload()
    windows, _ = buffer.windows(np.array([6]), np.array([0]), 2)
    assert windows.ages[0].tolist() == [0, 1, 5, 6, 7]
    assert windows.observations.unique().tolist() == [9]
    assert windows.previous_rewards[0].tolist() == [0, 7, 7, 7, 7]


def test_a_short_last_chunk_behind_a_short_context():
    """Windows of its bootstrap ask for rows behind the rollout, none of which has left the context."""
    buffer = filled(np.zeros((10, 2)), n_steps=10, n_context=1, chunk_length=4, n_landmarks=2)
    assert buffer.chunks()[-1][1] == 2
    windows = buffer.bootstrap_windows(np.array([9, 9]), np.array([0, 1]), np.zeros((2, 1)))
    assert windows.ages.tolist() == [[0, 1, 9, 10]] * 2


class Naive:
    """All steps ever, and what a window of them holds"""

    def __init__(self, starts: np.ndarray, n_steps: int, n_context: int, n_landmarks: int, noise_every: int):
        self.starts, self.noise = starts > 0, []
        self.n_context, self.n_landmarks = n_context, n_landmarks
        noise = 0
        for step in range(len(starts)):
            noise += bool(noise_every) and (step % n_steps) % noise_every == 0
            self.noise.append(noise)

    def of(self, step: int, env: int) -> tuple:
        """(observation, previous action, previous reward, start, episode id, age, noise id) of one step"""
        if step < 0:
            return number(0, env), (0.0, 0.0), 0.0, False, NO_EPISODE, 0.0, 0
        before = number(step - 1, env) if step > 0 else None
        action = (0.0, 0.0) if before is None else (before + 0.5, -before)
        began = [t for t in range(step + 1) if self.starts[t, env]]
        age = step - began[-1] if began else step
        reward = 0.0 if before is None else before + 0.25
        return number(step, env), action, reward, bool(self.starts[step, env]), len(began), float(age), self.noise[step]

    def landmarks(self, first: int, env: int) -> list[tuple | None]:
        """Of a chunk with this first step: the first steps of the episode so far that have left the context"""
        steps = [self.of(step, env) for step in range(max(first - self.n_context, 0))]
        found: list[tuple | None] = [step for step in steps if step[4] == self.of(first - 1, env)[4]]
        return (found + [None] * self.n_landmarks)[: self.n_landmarks]


def check_landmarks(windows, n: int, expected: list[tuple | None]) -> None:
    assert windows.n_landmarks == len(expected)
    for slot, step in enumerate(expected):
        if step is None:
            assert windows.episode_ids[n, slot] == NO_EPISODE
            assert windows.observations[n, slot] >= 10  # an observation
        else:
            assert content(windows, n, slot) == step


def content(windows, n: int, t: int) -> tuple:
    noise = 0 if windows.noise_ids is None else windows.noise_ids[n, t].item()
    return (
        windows.observations[n, t].item(),
        tuple(windows.previous_actions[n, t].tolist()),
        windows.previous_rewards[n, t].item(),
        windows.episode_starts[n, t].item(),
        windows.episode_ids[n, t].item(),
        windows.ages[n, t].item(),
        noise,
    )


PATTERNS = pytest.mark.parametrize("seed", range(40))


def drawn(seed: int) -> tuple[TrajectoryRolloutBuffer, Naive, int]:
    """A buffer of any size after some rollouts, what it has to hold, and the number of the first step of its last rollout"""
    rng = np.random.default_rng(seed)
    limits = {"n_steps": (1, 6), "n_context": (0, 7), "n_landmarks": (0, 3), "noise_every": (0, 3)}
    options = {name: int(rng.integers(low, high + 1)) for name, (low, high) in limits.items()}
    n_rollouts, n_envs, chunk_length = (int(rng.integers(1, high + 1)) for high in (4, 3, 7))
    starts = rng.random((options["n_steps"] * n_rollouts, n_envs)) < rng.choice([0.0, 0.1, 0.3, 1.0])
    buffer = filled(starts, held_noise=options["noise_every"] > 0, chunk_length=chunk_length, **options)
    return buffer, Naive(starts, **options), options["n_steps"] * (n_rollouts - 1)


@PATTERNS
def test_windows_hold_what_happened(seed):
    buffer, naive, begin = drawn(seed)
    for starts, length in buffer.chunks():
        for start in starts:
            envs = np.arange(buffer.n_envs)
            windows, actions = buffer.windows(np.full(buffer.n_envs, start), envs, length)
            k, width = buffer.n_landmarks, buffer.n_context + length
            assert windows.episode_ids.shape == (buffer.n_envs, k + width) and actions.shape == (buffer.n_envs, length, 2)
            for env in envs:
                check_landmarks(windows, env, naive.landmarks(begin + start, env))
                for t in range(width):
                    assert content(windows, env, k + t) == naive.of(begin + start - buffer.n_context + t, env)
                for t in range(length):
                    obs = number(begin + start + t, env)
                    assert actions[env, t].tolist() == [obs + 0.5, -obs]


@PATTERNS
def test_windows_of_observations_that_were_not_acted_upon(seed):
    """As the next step of the episode, whatever the step after was"""
    buffer, naive, begin = drawn(seed)
    steps, envs = (grid.ravel() for grid in np.meshgrid(np.arange(buffer.buffer_size), np.arange(buffer.n_envs)))
    windows = buffer.bootstrap_windows(steps, envs, -np.arange(len(steps))[:, None].astype(np.float64))
    k = buffer.n_landmarks
    assert windows.episode_ids.shape == (len(steps), k + buffer.n_context + 1) and windows.observations.dtype == th.float32
    for n, (step, env) in enumerate(zip(steps, envs, strict=True)):
        last = begin + step
        check_landmarks(windows, n, naive.landmarks(last + 1, env))  # as of a chunk that begins there
        for t in range(buffer.n_context):
            assert content(windows, n, k + t) == naive.of(last - buffer.n_context + 1 + t, env)
        obs = number(last, env)
        _, _, _, _, episode, age, noise = naive.of(last, env)
        noise += windows.noise_ids is not None  # a new one: all that was before is seen
        expected = (-n, (obs + 0.5, -obs), obs + 0.25, False, episode, age + 1, noise)
        assert content(windows, n, k + buffer.n_context) == expected


@PATTERNS
def test_context_of_the_rollout_to_come(seed):
    """The last steps, and after them the next one of the episode, whose observation is not known yet"""
    buffer, naive, begin = drawn(seed)
    buffer.reset()
    windows, n, k = buffer.context(), buffer.n_context, buffer.n_landmarks
    end = begin + len(buffer.rewards)
    assert windows.episode_ids.shape == (buffer.n_envs, k + n + 1)
    for env in range(buffer.n_envs):
        check_landmarks(windows, env, naive.landmarks(end, env))
        for t in range(n):
            assert content(windows, env, k + t) == naive.of(end - n + t, env)
        obs = number(end - 1, env)
        _, _, _, _, episode, age, _ = naive.of(end - 1, env)
        assert content(windows, env, k + n)[1:6] == ((obs + 0.5, -obs), obs + 0.25, False, episode, age + 1)


def test_context_before_anything_happened():
    buffer = make(n_context=2)
    buffer.reset()
    windows = buffer.context()
    assert windows.episode_ids.tolist() == [[-1, -1, 0]] * 2
    assert windows.ages.tolist() == [[0, 0, 0]] * 2
    add_step(buffer, 0, np.array([True, False]))
    assert buffer.episode_ids[0].tolist() == [1, 0]  # asking has left no trace


# --- chunks ---


@pytest.mark.parametrize(
    ("n_steps", "longest", "expected"),
    [
        (6, 2, [([0, 2, 4], 2)]),
        (5, 2, [([0, 2], 2), ([4], 1)]),
        (11, 10, [([0], 6), ([6], 5)]),
        (3, 9, [([0], 3)]),
        (3, 1, [([0, 1, 2], 1)]),
    ],
)
def test_chunks(n_steps, longest, expected):
    assert [(starts.tolist(), length) for starts, length in make(n_steps, chunk_length=longest).chunks()] == expected


# --- arguments ---


def test_defaults_are_sb3s_and_32_steps():
    buffer = TrajectoryRolloutBuffer(64, NUMBERS, ACTIONS, device="cpu")
    assert (buffer.gae_lambda, buffer.gamma, buffer.n_envs) == (1, 0.99, 1)
    assert (buffer.n_context, buffer.n_history, buffer.chunk_length, buffer.held_noise) == (32, 33, 32, False)
    buffer.reset()
    assert buffer.tensors().noise_ids is None
    assert buffer.storage.n_rows == 33 + 64


@pytest.mark.parametrize("wrong", [{"n_context": -1}, {"chunk_length": 0}])
def test_impossible_lengths(wrong):
    with pytest.raises(ValueError, match=r", but n_context must be at least 0 and chunk_length at least 1\.$"):
        make(**wrong)
    make(n_context=0, chunk_length=1)


def test_made_as_sb3s():
    """With SB3's arguments alone; a rollout that has begun is not full"""
    assert TrajectoryRolloutBuffer(33, NUMBERS, ACTIONS).chunk_length == 17  # two equal chunks of at most 32
    buffer = TrajectoryRolloutBuffer(4, NUMBERS, ACTIONS)
    assert buffer.device.type in ("cpu", "cuda", "mps")
    for step in range(4):
        add_step(buffer, step, np.array([step == 0]))
    assert buffer.full
    buffer.reset()
    assert not buffer.full


def test_nothing_can_be_read_too_early():
    buffer = make(n_steps=2)
    buffer.reset()
    add_step(buffer, 0, np.ones(2))
    for generator in (buffer.get(2), buffer.get_transitions(2), buffer.get_windows(2)):
        with pytest.raises(AssertionError, match=r"^The rollout is not complete yet"):
            next(generator)
    assert (buffer.pos, buffer.full) == (1, False)
    add_step(buffer, 1, np.zeros(2))
    assert (buffer.pos, buffer.full) == (2, True)
    for generator in (buffer.get(2), buffer.get_transitions(2), buffer.get_windows(2)):
        next(generator)
    with pytest.raises(AssertionError, match="reset"):
        vars(buffer).update(_storage=None)
        _ = buffer.storage


# --- time limits and advantages ---


def test_observations_on_which_a_time_limit_cut_off_are_copied():
    buffer = make(n_steps=2)
    buffer.reset()
    add_step(buffer, 0, np.ones(2))
    obs = np.array([5.0])
    buffer.add_terminal_observation(1, obs)
    obs[0] = 6.0  # environments may use it again
    add_step(buffer, 1, np.array([0, 1]))
    buffer.add_terminal_observation(0, obs)
    assert list(buffer.terminal_observations) == [(0, 1), (1, 0)]
    assert [value.tolist() for value in buffer.terminal_observations.values()] == [[5.0], [6.0]]
    buffer.reset()
    assert buffer.terminal_observations == {} and len(buffer.terminal_values) == 0


def timed_out() -> TrajectoryRolloutBuffer:
    """gamma 1/2, lambda 1/2; the second environment's first episode is cut off after its first step"""
    buffer = make(n_steps=2, gamma=0.5, gae_lambda=0.5)
    buffer.reset()
    nothing = np.zeros((2, 1))
    buffer.add(nothing, np.zeros((2, 2)), np.array([1.0, 2.0]), np.ones(2))
    buffer.add_terminal_observation(1, np.zeros(1))
    buffer.add(nothing, np.zeros((2, 2)), np.array([3.0, 4.0]), np.array([0, 1]))
    buffer.set_values(np.array([[2.0, 2.0], [4.0, 4.0]]), np.array([[20.0, 20.0], [40.0, 40.0]]))
    return buffer


def test_returns_go_on_behind_a_time_limit():
    buffer = timed_out()
    rewards = buffer.rewards.copy()
    buffer.set_values(buffer.values, buffer.mlp_values, np.array([100.0]))
    buffer.compute_returns_and_advantage(th.tensor([[8.0], [16.0]]), np.array([False, True]))
    # Errors: 1 + 2 - 2 and 3 + 4 - 4; 2 + 50 - 2 (the time limit) and 4 + 0 - 4 (an end)
    assert buffer.advantages.tolist() == [[1 + 3 / 4, 50], [3, 0]]
    assert buffer.returns.tolist() == [[3.75, 52], [7, 4]]
    assert np.array_equal(buffer.rewards, rewards)
    advantages = buffer.advantages
    buffer.compute_returns_and_advantage(th.tensor([8.0, 16.0]), np.array([False, True]))  # as a callback may
    assert np.array_equal(buffer.advantages, advantages)
    buffer.set_values(buffer.values, terminal_values=np.zeros(1))
    buffer.compute_returns_and_advantage(th.tensor([8.0, 16.0]), np.array([False, True]))
    assert buffer.advantages[0, 1] == 0


def test_advantages_under_other_values():
    buffer = timed_out()
    buffer.set_values(buffer.values, terminal_values=np.array([100.0]))
    buffer.compute_returns_and_advantage(th.zeros(2), np.array([True, True]))
    before = buffer.advantages
    values, last = np.array([[0.0, 1.0], [2.0, 0.0]]), np.array([4.0, 0.0])
    advantages = buffer.advantages_under(values, last, np.array([False, True]), np.array([10.0]))
    assert advantages.tolist() == [[1 + 1 - 0 + (3 + 2 - 2) / 4, 2 + 5 - 1], [3, 4]]
    assert buffer.advantages is before and buffer.terminal_values.tolist() == [100]


def test_values_of_two_kinds():
    buffer = timed_out()
    assert buffer.values.tolist() == [[2, 2], [4, 4]] and buffer.mlp_values.tolist() == [[20, 20], [40, 40]]
    buffer.set_values(np.ones((2, 2)))
    assert buffer.values.tolist() == buffer.mlp_values.tolist() == [[1, 1], [1, 1]]
    assert buffer.values.dtype == np.float32
