"""Sensors that fail, and sensors that are not there."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

import sb3_attention_ac.envs  # noqa: F401  # registers the tasks
from sb3_attention_ac.wrappers import FailingSensors, PositionOnly, VelocityOnly

# Task: size of the observation, of its positions and velocities (Gymnasium's tables of observation spaces)
MUJOCO = {"Hopper-v5": (11, 5, 6), "Walker2d-v5": (17, 8, 9), "HalfCheetah-v5": (17, 8, 9), "Ant-v5": (105, 13, 14)}


class Counter(gym.Env):
    """Observation: the number of steps since the environment was made, in each of n entries"""

    action_space = spaces.Discrete(2)

    def __init__(self, n=8):
        self.observation_space = spaces.Box(1.0, np.inf, (n,), dtype=np.float64)
        self.n, self.t = n, 0

    def _observation(self):
        self.t += 1
        return np.full(self.n, float(self.t))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action):
        return self._observation(), 0.0, False, False, {}


def run(env, n, seed=0):
    """:return: Observations and which sensors were read, [n, sensors]"""
    obs, _ = env.reset(seed=seed)
    seen, available = [obs], [env.available]
    for _ in range(n - 1):
        seen.append(env.step(0)[0])
        available.append(env.available)
    return np.array(seen), np.array(available)


def test_the_defaults_show_61_percent():
    _, available = run(FailingSensors(Counter(40), groups=10), 4000)
    stationary = 0.9 / (0.9 + 0.01) * 0.9 / (0.9 + 0.55)
    assert abs(stationary - 0.614) < 0.001
    assert abs(available.mean() - stationary) < 0.01
    first = np.concatenate([run(FailingSensors(Counter(40), groups=40), 1, seed)[1] for seed in range(40)])
    assert abs(first.mean() - stationary) < 0.04  # from the first step on


@pytest.mark.parametrize(("which", "fail", "recover"), [("sensors", 0.02, 0.1), ("sensors", 0.3, 0.9), ("groups", 0.2, 0.3)])
def test_chains_go_down_and_come_back_at_their_rates(which, fail, recover):
    if which == "sensors":
        env = FailingSensors(Counter(), fail=fail, recover=recover, groups=0)
    else:
        env = FailingSensors(Counter(), fail=0, group_fail=fail, group_recover=recover, groups=4)
    _, up = run(env, 5000)
    before, after = up[:-1], up[1:]
    assert abs((~after[before]).mean() - fail) < 0.02
    assert abs(after[~before].mean() - recover) < 0.05
    together = (up[:, 0] == up[:, 1]).all()
    assert together == (which == "groups")
    assert not (up[:, 0] == up[:, 2]).all()  # another group


def test_groups():
    assert [len(FailingSensors(Counter(n)).groups) for n in (2, 8)] == [2, 4]
    blocks = FailingSensors(Counter(7), groups=3)
    assert [list(group) for group in blocks.groups] == [[0, 1, 2], [3, 4], [5, 6]]
    given = FailingSensors(Counter(5), fail=0, group_fail=0.5, groups=[[0, 3], [2]])
    _, up = run(given, 500)
    np.testing.assert_array_equal(up[:, 0], up[:, 3])
    assert not (up[:, 0] == up[:, 2]).all()
    assert up[:, [1, 4]].all() and not up[:, 0].all()  # those without a group do not fail with one


def test_what_is_read_instead():
    seen, up = run(FailingSensors(Counter(), fail=0.3), 300)
    steps = np.broadcast_to(np.arange(1, 301)[:, None], seen.shape)
    np.testing.assert_array_equal(seen, np.where(up, steps, 0))

    env = FailingSensors(Counter(), fail=0.3, recover=0.4, failed="hold")
    seen, up = run(env, 300)
    last = np.maximum.accumulate(np.where(up, steps, 0), axis=0)
    np.testing.assert_array_equal(seen, last)
    assert not up.all()
    again, up = env.reset()[0], env.available
    np.testing.assert_array_equal(again, np.where(up, 301, 0))  # what the last episode read is forgotten

    seen, up = run(FailingSensors(Counter(), fail=0.3, show_mask=True), 50)
    np.testing.assert_array_equal(seen[:, 8:], up)


def test_the_space_holds_what_is_read():
    env = FailingSensors(Counter(3), show_mask=True)  # Counter never shows a zero
    np.testing.assert_array_equal(env.observation_space.low, 0)
    np.testing.assert_array_equal(env.observation_space.high, [np.inf] * 3 + [1] * 3)
    assert env.observation_space.dtype == np.float64
    assert all(env.observation_space.contains(obs) for obs in run(env, 20)[0])


def test_a_number_of_groups_may_be_numpys():
    env = FailingSensors(Counter(), groups=np.int64(2))
    assert [group.tolist() for group in env.groups] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_the_seed_decides():
    def failures(seed):
        return run(FailingSensors(Counter()), 100, seed)[1]

    np.testing.assert_array_equal(failures(1), failures(1))
    assert not np.array_equal(failures(1), failures(2))


@pytest.mark.filterwarnings("ignore::UserWarning")  # advice about the wrapped environment
@pytest.mark.parametrize("kwargs", [{}, {"show_mask": True, "failed": "hold"}])
def test_gymnasium_accepts_it(kwargs):
    check_env(FailingSensors(gym.make("Pendulum-v1").unwrapped, groups=2, **kwargs), skip_render_check=True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"fail": 1.5}, "fail=1.5"),
        ({"group_fail": -0.1}, "group_fail=-0.1"),
        ({"recover": 0}, "recover=0"),
        ({"groups": 9}, "has 8 entries"),
        ({"groups": [[0, 1], [1]]}, "one group at most"),
        ({"groups": [[8]]}, "from 0 to 7"),
        ({"failed": "nan"}, "'zero' or 'hold'"),
    ],
)
def test_wrong_parameters(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FailingSensors(Counter(), **kwargs)


@pytest.mark.parametrize("task", MUJOCO)
def test_positions_and_velocities_are_mujocos(task):
    pytest.importorskip("mujoco")
    size, n_positions, n_velocities = MUJOCO[task]
    positions, velocities = PositionOnly(gym.make(task)), VelocityOnly(gym.make(task))
    assert gym.make(task).observation_space.shape == (size,)
    skipped = 2 if task == "Ant-v5" else 1  # x, and y of Ant
    for env, n in ((positions, n_positions), (velocities, n_velocities)):
        assert env.observation_space.shape == (n,)
        env.action_space.seed(0)
        obs, _ = env.reset(seed=0)
        for _ in range(10):
            data = env.unwrapped.data
            expected = data.qpos[skipped:] if env is positions else data.qvel
            if task in ("Hopper-v5", "Walker2d-v5") and env is velocities:
                expected = np.clip(expected, -10, 10)
            np.testing.assert_array_equal(obs, expected)
            assert env.observation_space.contains(obs)
            obs, *_ = env.step(env.action_space.sample())


def test_they_combine():
    pytest.importorskip("mujoco")
    env = FailingSensors(PositionOnly(gym.make("Hopper-v5")), groups=0, fail=0.5, recover=0.5)
    assert run_zeros(env) > 0.3


def run_zeros(env):
    obs = [env.reset(seed=0)[0]]
    obs += [env.step(env.action_space.sample())[0] for _ in range(40)]
    assert obs[0].shape == (5,)
    return (np.array(obs) == 0).mean()


def test_other_observations_are_refused():
    with pytest.raises(ValueError, match="vector as observation"):
        FailingSensors(gym.make("FrozenLake-v1"))
    for wrapper in (PositionOnly, VelocityOnly):
        with pytest.raises(ValueError, match="Hopper-v5"):
            wrapper(gym.make("Pendulum-v1"))
    pytest.importorskip("mujoco")
    with pytest.raises(ValueError, match="before other wrappers"):
        VelocityOnly(PositionOnly(gym.make("Hopper-v5")))


@pytest.mark.parametrize("wrapper", [PositionOnly, VelocityOnly, FailingSensors])
@pytest.mark.parametrize("task", MUJOCO)
def test_each_task_is_registered_with_each_wrapper(task, wrapper):
    name = task.replace("-v5", f"{wrapper.__name__}-v5")
    env = gym.make(name)
    inside = gym.make(task)
    assert type(env) is wrapper
    assert env.spec.id == name
    assert (env.spec.max_episode_steps, env.spec.reward_threshold) == (1000, inside.spec.reward_threshold)
    seen, full = env.reset(seed=3)[0], wrapper(inside).reset(seed=3)[0]
    np.testing.assert_array_equal(seen, full)


# ---- random numbers


def numbers_drawn(env, seed, n_episodes=3):
    """:return: What CartPole starts from in a row of episodes of five steps, of which the first is seeded"""
    starts = []
    for episode in range(n_episodes):
        env.reset(seed=seed if episode == 0 else None)
        starts.append(env.unwrapped.state)
        for _ in range(5):
            env.step(0)
    return np.array(starts)


def test_failures_do_not_change_the_environment():
    bare = numbers_drawn(gym.make("CartPole-v1"), 3)
    np.testing.assert_array_equal(numbers_drawn(FailingSensors(gym.make("CartPole-v1")), 3), bare)


def test_failures_follow_from_the_seed_where_the_environment_ignores_it():
    class Unseeded(Counter):
        def reset(self, *, seed=None, options=None):
            return self._observation(), {}

    first, second, other = (run(FailingSensors(Unseeded()), 50, seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()
    env = FailingSensors(Unseeded())
    _, available = run(env, 50, None)
    assert (run(env, 50, None)[1] != available).any()  # without a seed it goes on


def test_wrappers_inside_one_another_fail_at_other_times():
    inner = FailingSensors(Counter(), failed="hold")
    outer = FailingSensors(gym.wrappers.TimeLimit(inner, 100), failed="hold")
    for seed in (0, 0):  # the same in the first reset and later
        read = [(outer.reset(seed=seed), outer.available, inner.available)[1:]]
        read += [(outer.step(0), outer.available, inner.available)[1:] for _ in range(50)]
        both = np.array(read)
        assert (both[:, 0] != both[:, 1]).any()
    alone = run(FailingSensors(Counter()), 51)[1]
    np.testing.assert_array_equal(both[:, 1], alone)


def test_what_was_returned_may_be_written_to():
    env = FailingSensors(Counter(), fail=0, group_fail=1, group_recover=1, groups=1, failed="hold")
    obs, _ = env.reset(seed=1)
    expected = None
    for _ in range(6):
        if env.available.all():
            expected = obs.copy()
        elif expected is not None:
            np.testing.assert_array_equal(obs, expected)
        obs -= 10
        obs = env.step(0)[0]
    assert expected is not None
