"""The T-mazes: what is seen, what is rewarded, when an episode ends, and what remembering is worth."""

import functools
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env

import sb3_attention_ac.envs  # noqa: F401 (registers)
from sb3_attention_ac.envs import endless_tmaze, grid_tmaze, noisy_tmaze, passive_tmaze
from sb3_attention_ac.envs.endless_tmaze import EndlessTMaze
from sb3_attention_ac.envs.grid_tmaze import TILES, GridTMaze
from sb3_attention_ac.envs.noisy_tmaze import NoisyTMaze
from sb3_attention_ac.envs.passive_tmaze import DOWN, LEFT, RIGHT, UP, PassiveTMaze

IDS = ["PassiveTMaze-v0", "EndlessTMaze-v0", "GridTMaze-v0", "NoisyTMaze-v0"]


def run(env, policy, seed=None):
    """:return: Observations, rewards and the last step's (terminated, truncated, info)"""
    obs, _ = env.reset(seed=seed)
    observations, rewards, done = [obs], [], False
    while not done:
        obs, reward, terminated, truncated, info = env.step(policy(obs))
        observations.append(obs)
        rewards.append(reward)
        done = terminated or truncated
    return np.array(observations), rewards, (terminated, truncated, info)


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_accepts_it(env_id):
    env = gym.make(env_id, render_mode="rgb_array").unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)


def test_sizes_of_published_tables_have_names():
    assert gym.make("PassiveTMaze250-v0").unwrapped.corridor_length == 250
    assert gym.make("GridTMaze16-v0").unwrapped.corridor_length == 16
    fixed, uniform = gym.make("EndlessTMaze3-v0").unwrapped, gym.make("EndlessTMazeUniform10-v0").unwrapped
    assert (fixed.n_corridors, fixed.lengths) == (3, "fixed")
    assert (uniform.n_corridors, uniform.lengths) == (10, "uniform")


@pytest.mark.parametrize("env_id", IDS)
def test_the_seed_decides_and_seeds_differ(env_id):
    def episodes(seed):
        env = gym.make(env_id, disable_env_checker=True)
        env.action_space.seed(0)
        steps = [env.reset(seed=seed)[0]]
        for _ in range(300):
            obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            steps.append(np.append(obs, reward))
            if terminated or truncated:
                steps.append(env.reset()[0])
        return np.concatenate(steps)

    np.testing.assert_array_equal(episodes(1), episodes(1))
    assert any(not np.array_equal(episodes(0), episodes(seed)) for seed in range(1, 8))


@pytest.mark.parametrize("env_id", IDS)
def test_a_picture_shows_one_agent_that_moves(env_id):
    env = gym.make(env_id, render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    before = env.render()
    env.step(noisy_tmaze.RIGHT if "Noisy" in env_id else 0)  # forward
    after = env.render()
    assert before.dtype == np.uint8 and before.shape == after.shape and before.shape[2] == 3
    red = [np.argwhere((picture == (220, 60, 60)).all(axis=2)).mean(axis=0) for picture in (before, after)]
    np.testing.assert_allclose(red[1] - red[0], [0, 8])
    with pytest.raises(ValueError, match="render_mode='human'"):
        type(env)(render_mode="human")


@pytest.mark.parametrize("env_id", IDS)
def test_success_is_reported_where_sb3_reads_it(env_id):
    env = make_vec_env(env_id, n_envs=2, seed=0, env_kwargs={"corridor_length": 4})
    env.reset()
    done = np.array([False])
    while not done.any():
        _, _, done, infos = env.step(np.array([env.action_space.sample() for _ in range(2)]))
        for info, ended in zip(infos, done, strict=True):
            assert ("is_success" in info) == ended


# Passive T-maze


def passive_optimum():
    memory = {}

    def act(obs):
        if obs[1]:
            memory["goal"] = obs[1]
        return (UP if memory["goal"] > 0 else DOWN) if obs[0] else RIGHT

    return act


@pytest.mark.parametrize("length", [1, 5, 40])
def test_passive_who_remembers_gets_one(length):
    for seed in range(6):
        env = PassiveTMaze(length)
        observations, rewards, (terminated, truncated, info) = run(env, passive_optimum(), seed)
        assert len(rewards) == length + 1 and terminated and not truncated
        assert sum(rewards) == 1 and info["is_success"]
        goal = observations[0, 1]
        assert abs(goal) == 1
        # The cue is shown at the first step only, the flag at the junction only
        np.testing.assert_array_equal(observations[1:length], 0)
        np.testing.assert_array_equal(observations[length], [1, 0])
        np.testing.assert_array_equal(observations[-1], [1, goal])


def test_passive_guessing_is_right_half_of_the_time():
    env = PassiveTMaze(4)
    env.reset(seed=0)
    successes = [run(env, lambda obs: UP if obs[0] else RIGHT)[2][2]["is_success"] for _ in range(400)]
    assert 0.43 < np.mean(successes) < 0.57


def test_passive_standing_still_costs_one_in_all():
    _, rewards, (terminated, _, info) = run(PassiveTMaze(10), lambda obs: UP, seed=0)
    np.testing.assert_allclose(rewards, [-0.1] * 10 + [0])
    assert terminated and not info["is_success"]


def test_passive_a_wasted_step_cannot_be_made_up():
    actions = iter([LEFT, RIGHT, RIGHT, RIGHT])
    observations, rewards, (_, _, info) = run(PassiveTMaze(3, penalty=-0.5), lambda obs: next(actions), seed=0)
    np.testing.assert_allclose(rewards, [-0.5, -0.5, -0.5, 0])  # behind at t = 1, 2, 3; at the junction at the end, no goal
    np.testing.assert_array_equal(observations[1], [0, 0])  # back at the start: no cue
    assert not info["is_success"]


def test_passive_coming_back_to_the_start_shows_no_cue():
    actions = iter([RIGHT, LEFT, RIGHT, RIGHT, RIGHT])
    observations, *_ = run(PassiveTMaze(4), lambda obs: next(actions), seed=0)
    np.testing.assert_array_equal(observations[2], [0, 0])


@pytest.mark.parametrize("kwargs", [{"corridor_length": 0}, {"corridor_length": 2.5}, {"penalty": 0.1}, {"penalty": np.nan}])
def test_passive_wrong_parameters(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        PassiveTMaze(**kwargs)


# Endless T-maze


def endless_optimum(env):
    """Goes forward; at the end of a corridor, known from its length, turns as the cue said."""
    memory = {}

    def act(obs):
        if obs[1] or obs[2]:
            memory["turn"] = endless_tmaze.LEFT if obs[1] else endless_tmaze.RIGHT
        return memory["turn"] if obs[0] == 1 else endless_tmaze.FORWARD

    return act


@pytest.mark.parametrize("n_corridors", [1, 3, 10])
def test_endless_who_rewrites_its_memory_passes_all(n_corridors):
    env = EndlessTMaze(n_corridors, corridor_length=4)
    observations, rewards, (terminated, truncated, info) = run(env, endless_optimum(env), seed=3)
    assert terminated and not truncated and info == {"is_success": True, "corridors_passed": n_corridors}
    assert rewards == ([0] * 4 + [1]) * n_corridors
    shown = observations[:-1, 1:].sum(axis=1)
    np.testing.assert_array_equal(shown, [1, 0, 0, 0, 0] * n_corridors)  # in the first cell of each corridor
    np.testing.assert_allclose(observations[:5, 0], [0, 0.25, 0.5, 0.75, 1])


def test_endless_cues_are_independent_and_even():
    env = EndlessTMaze(50, corridor_length=1)
    cues = np.concatenate([run(env, endless_optimum(env), seed=seed)[0][:-1:2, 1] for seed in range(8)])
    assert 0.43 < cues.mean() < 0.57
    assert 0.4 < (cues[1:] == cues[:-1]).mean() < 0.6  # the last cue says nothing about the next


@pytest.mark.parametrize("action", [0, 1, 2])
def test_endless_the_wrong_action_at_a_junction_ends_it(action):
    for seed in range(4):
        env = EndlessTMaze(2, corridor_length=1, wrong_reward=-0.7)
        cue, _ = env.reset(seed=seed)
        env.step(endless_tmaze.FORWARD)
        _, reward, terminated, truncated, info = env.step(action)
        if cue[action] == 1:  # cue left is entry 1, as action 1 is
            assert reward == 1 and not terminated and not truncated and not info
        else:
            assert reward == -0.7 and terminated and not truncated
            assert info == {"is_success": False, "corridors_passed": 0}


def test_endless_idling_costs_and_is_cut_off():
    env = EndlessTMaze(2, corridor_length=3)
    _, rewards, (terminated, truncated, info) = run(env, lambda obs: endless_tmaze.LEFT, seed=0)
    np.testing.assert_allclose(rewards, -0.01)
    assert len(rewards) == 6 * 4 * 2 and truncated and not terminated and not info["is_success"]


def test_endless_uniform_lengths_are_drawn_for_each_corridor_and_hidden():
    env = EndlessTMaze(4, corridor_length=5, lengths="uniform")
    env.reset(seed=0)
    lengths = []
    for _ in range(100):
        memory = {"turn": 0, "tried": False}

        def act(obs, memory=memory):  # tries the turn in each cell, then goes forward
            if obs[1] or obs[2]:
                memory["turn"] = endless_tmaze.LEFT if obs[1] else endless_tmaze.RIGHT
                memory["tried"] = True  # no corridor is shorter than one cell
            memory["tried"] = not memory["tried"]
            return memory["turn"] if memory["tried"] else endless_tmaze.FORWARD

        observations, _, (_, _, info) = run(env, act)
        assert info["is_success"]
        ends = np.flatnonzero(np.diff(observations[:, 0]) < 0)
        lengths.extend(np.round(observations[ends, 0] * 5).astype(int))
    assert set(lengths) == {1, 2, 3, 4, 5}
    np.testing.assert_allclose(np.bincount(lengths)[1:] / len(lengths), 0.2, atol=0.07)


def test_endless_relative_position_marks_the_junction():
    env = EndlessTMaze(5, corridor_length=6, lengths="uniform", relative_position=True)
    for seed in range(5):
        assert run(env, endless_optimum(env), seed)[2][2]["is_success"]


@pytest.mark.parametrize(
    "kwargs", [{"n_corridors": 0}, {"corridor_length": 0}, {"corridor_length": 1.5}, {"lengths": "random"}]
)
def test_endless_wrong_parameters(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        EndlessTMaze(**kwargs)


# T-maze on a grid


def cells(obs):
    """:return: The 3 x 3 names of the cells"""
    return np.array(TILES)[obs.reshape(3, 3, len(TILES)).argmax(axis=2)]


def grid_optimum(length, env):
    """Walks to the junction, looks to both sides, steps on the colour seen first."""
    memory = {"t": 0}

    def act(obs):
        seen, t = cells(obs), memory["t"]
        memory["t"] += 1
        if t == 0:
            memory["cue"] = seen[2, 1]
        if t < length - 1:
            return grid_tmaze.FORWARD
        if t == length - 1:  # at the junction, looking right: the upper cell is on the left
            return grid_tmaze.TURN_LEFT if seen[2, 0] == memory["cue"] else grid_tmaze.TURN_RIGHT
        return grid_tmaze.FORWARD

    return act


@pytest.mark.parametrize("length", [4, 8, 64])
def test_grid_who_remembers_the_colour_succeeds(length):
    env = GridTMaze(length)
    seen = set()
    for seed in range(16):
        observations, rewards, (terminated, truncated, info) = run(env, grid_optimum(length, env), seed)
        assert terminated and not truncated and info["is_success"] and sum(rewards) == 1
        assert len(rewards) == length + 1
        first, junction = cells(observations[0]), cells(observations[length - 1])
        seen.add((first[2, 1], junction[2, 0]))
        colours = np.isin([cells(obs) for obs in observations[1 : length - 3]], ["green floor", "blue floor"])
        assert not colours.any()  # in between there is nothing to see
    assert len(seen) == 4  # both colours as cue, each on both sides


def test_grid_first_view():
    env = GridTMaze(8)
    obs, _ = env.reset(seed=0)
    wall, floor = "wall", "floor"
    cue = cells(obs)[2, 1]
    assert cue in ("green floor", "blue floor")
    np.testing.assert_array_equal(cells(obs), [[wall, floor, wall], [wall, floor, wall], [wall, cue, wall]])
    up = cells(env.step(grid_tmaze.TURN_LEFT)[0])
    np.testing.assert_array_equal(up, [[wall, wall, wall], [wall, wall, wall], [wall, cue, floor]])
    back = cells(env.step(grid_tmaze.TURN_LEFT)[0])
    np.testing.assert_array_equal(back, [["unseen"] * 3, [wall, wall, wall], [wall, cue, wall]])
    down = cells(env.step(grid_tmaze.TURN_LEFT)[0])
    np.testing.assert_array_equal(down, [[wall, wall, wall], [wall, wall, wall], [floor, cue, wall]])
    env.step(grid_tmaze.TURN_RIGHT)
    stays = cells(env.step(grid_tmaze.FORWARD)[0])  # into the wall behind the start
    np.testing.assert_array_equal(stays, back)


def test_grid_the_other_colour_ends_without_reward():
    env = GridTMaze(5)
    wrong = {grid_tmaze.TURN_LEFT: grid_tmaze.TURN_RIGHT, grid_tmaze.TURN_RIGHT: grid_tmaze.TURN_LEFT}
    for seed in range(4):
        act = grid_optimum(5, env)
        _, rewards, (terminated, _, info) = run(env, lambda obs, act=act: wrong.get(a := act(obs), a), seed)
        assert terminated and sum(rewards) == 0 and not info["is_success"]


def test_grid_time_limit():
    _, rewards, (terminated, truncated, info) = run(GridTMaze(4), lambda obs: grid_tmaze.TURN_LEFT, seed=0)
    assert len(rewards) == 5 * 6**2 and truncated and not terminated and not info["is_success"]


def test_grid_too_short():
    with pytest.raises(ValueError, match="corridor_length=2"):
        GridTMaze(2)


@pytest.mark.parametrize("kwargs", [{"corridor_length": 8.5}, {"max_steps": 0}])
def test_grid_wrong_parameters(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        GridTMaze(**kwargs)


# T-maze with noise


def noisy_optimum(memory, obs):
    """Goes right; at the junction turns as the first observation said."""
    bits = tuple(obs[:3])
    if not memory:
        memory["turn"] = {(0, 1, 1): noisy_tmaze.UP, (1, 1, 0): noisy_tmaze.DOWN}[bits]
    return memory["turn"] if bits == (0, 1, 0) else noisy_tmaze.RIGHT


@pytest.mark.parametrize("length", [2, 30])
def test_noisy_who_remembers_gets_four(length):
    turns = set()
    for seed in range(8):
        memory = {}
        act = functools.partial(noisy_optimum, memory)
        observations, rewards, (terminated, truncated, info) = run(NoisyTMaze(length), act, seed)
        assert terminated and not truncated and info["is_success"]
        np.testing.assert_allclose(rewards, [-0.1] * (length - 1) + [4])
        np.testing.assert_array_equal(observations[1 : length - 1, :3], np.tile([1, 0, 1], (length - 2, 1)))
        assert not observations[0, 3:].any()
        turns.add(memory["turn"])
    assert len(turns) == 2


def test_noisy_bits_are_noise():
    env = NoisyTMaze(10, n_noise=4, max_steps=500)
    observations, rewards, (terminated, truncated, info) = run(env, lambda obs: noisy_tmaze.LEFT, seed=0)
    assert len(rewards) == 500 and truncated and not terminated and not info["is_success"]
    np.testing.assert_allclose(observations[1:, 3:].mean(axis=0), 0.5, atol=0.08)
    assert np.abs(np.corrcoef(observations[1:, 3:].T) - np.eye(4)).max() < 0.15


def test_noisy_a_wrong_turn_costs_one_and_ends_it():
    env = NoisyTMaze(2)
    rewards = set()
    for seed in range(6):
        env.reset(seed=seed)
        _, reward, terminated, *_ = env.step(noisy_tmaze.UP)  # in the corridor: nothing
        assert reward == -0.1 and not terminated
        env.step(noisy_tmaze.RIGHT)
        for _ in range(2):
            obs, reward, terminated, *_ = env.step(noisy_tmaze.LEFT)  # at the junction: nothing
            assert reward == -0.1 and not terminated and tuple(obs[:3]) == (0, 1, 0)
        _, reward, terminated, _, info = env.step(noisy_tmaze.UP)
        assert terminated and info["is_success"] == (reward == 4)
        rewards.add(reward)
    assert rewards == {4.0, -1.0}


def test_noisy_position_in_gray_code():
    env = NoisyTMaze(256, n_noise=1, show_position=True)
    observations, *_ = run(env, lambda obs: noisy_tmaze.RIGHT if not obs[2:10].sum() == 1 or not obs[2] else 0, seed=0)
    codes = observations[:256, 2:10]
    assert observations[0, :2].sum() == 1 and not observations[1:, :2].any()
    assert len(np.unique(codes, axis=0)) == 256
    np.testing.assert_array_equal(np.abs(np.diff(codes, axis=0)).sum(axis=1), 1)  # neighbours differ in one bit
    np.testing.assert_array_equal(codes[:4, -2:], [[0, 0], [0, 1], [1, 1], [1, 0]])


@pytest.mark.parametrize(
    "kwargs", [{"corridor_length": 1}, {"corridor_length": 257, "show_position": True}, {"n_noise": -1}, {"max_steps": 0}]
)
def test_noisy_wrong_parameters(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        NoisyTMaze(**kwargs)


def test_constants_are_the_actions_of_the_documentation():
    assert (passive_tmaze.RIGHT, passive_tmaze.UP, passive_tmaze.LEFT, passive_tmaze.DOWN) == (0, 1, 2, 3)
    assert (endless_tmaze.FORWARD, endless_tmaze.LEFT, endless_tmaze.RIGHT) == (0, 1, 2)
    assert (noisy_tmaze.UP, noisy_tmaze.DOWN, noisy_tmaze.LEFT, noisy_tmaze.RIGHT) == (0, 1, 2, 3)
    assert (grid_tmaze.FORWARD, grid_tmaze.TURN_RIGHT, grid_tmaze.TURN_LEFT) == (0, 1, 2)
