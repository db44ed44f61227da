"""EnvPool's contract with SB3: with a pool that counts, and with EnvPool where it is installed."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecMonitor

from sb3_attention_ac import AAC
from sb3_attention_ac.envs import envpool as adapter
from sb3_attention_ac.envs.envpool import EnvPoolVecEnv, minigrid_view


class CountingPool:
    """
    As a pool in EnvPool's synchronous mode. An observation is (seed of the environment, episode, step); environment i ends its
    episodes after i + 2 steps, with odd i by a time limit.
    """

    observation_space, action_space = spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Discrete(4)

    def __init__(self, env_id: str, num_envs: int, seed: int, **options: Any):
        assert env_id == "Counting-v0"
        self.state = np.array([[seed + i, -1, 0] for i in range(num_envs)], dtype=np.float32)
        self.options, self.closed, self.actions = options, False, None

    def reset(self, ids: np.ndarray | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        ids = np.arange(len(self.state)) if ids is None else ids
        self.state[ids, 1] += 1
        self.state[ids, 2] = 0
        return self.state[ids].copy(), {"env_id": ids}

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        self.actions = actions
        self.state[:, 2] += 1
        ends, odd = self.state[:, 2] == np.arange(len(self.state)) + 2, np.arange(len(self.state)) % 2 == 1
        return self.state.copy(), self.state[:, 2].copy(), ends & ~odd, ends & odd, {}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> EnvPoolVecEnv:
    monkeypatch.setattr(adapter, "_make", CountingPool)
    return EnvPoolVecEnv("Counting-v0", n_envs=3, seed=10, num_threads=2)


def test_episodes_end_as_in_sb3(env):
    assert env.reset().tolist() == [[10, 0, 0], [11, 0, 0], [12, 0, 0]]
    _, _, dones, infos = env.step(np.array([1, 2, 3]))
    assert not dones.any() and infos == [{}, {}, {}] and env.pool.actions.tolist() == [1, 2, 3]
    obs, rewards, dones, infos = env.step(np.zeros(3))
    assert dones.tolist() == [True, False, False] and rewards.tolist() == [2, 2, 2]
    assert obs.tolist() == [[10, 1, 0], [11, 0, 2], [12, 0, 2]]
    assert infos[0]["terminal_observation"].tolist() == [10, 0, 2] and not infos[0]["TimeLimit.truncated"]
    obs, _, dones, infos = env.step(np.zeros(3))
    assert dones.tolist() == [False, True, False] and obs[1].tolist() == [11, 1, 0]
    assert infos[1]["TimeLimit.truncated"] is True and infos[1]["terminal_observation"].tolist() == [11, 0, 3]


def test_a_seed_counts_from_the_next_reset_on(env):
    first = env.pool
    assert env.seed(40) == [40, 41, 42] and env.pool is first
    assert env.reset()[:, 0].tolist() == [40, 41, 42] and first.closed
    assert env.pool.options == {"num_threads": 2}
    second = env.pool
    env.reset()
    assert env.pool is second


def test_observations_may_be_transformed(monkeypatch):
    monkeypatch.setattr(adapter, "_make", CountingPool)
    space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    env = EnvPoolVecEnv("Counting-v0", 2, transform=lambda obs: obs[:, 2:], observation_space=space)
    assert env.observation_space is space and env.reset().tolist() == [[0], [0]]
    env.step(np.zeros(2))
    obs, _, _, infos = env.step(np.zeros(2))
    assert obs.tolist() == [[0], [2]] and infos[0]["terminal_observation"].tolist() == [2]


def test_it_is_learned_from(env):
    model = AAC("MlpPolicy", VecMonitor(env), n_steps=16, batch_size=16, n_epochs=1, seed=7, device="cpu").learn(96)
    assert sorted(episode["l"] for episode in model.ep_info_buffer)[0] == 2
    assert model.rollout_buffer.observations[0, :, 0].tolist() == [7, 8, 9]


def test_what_it_cannot_do_is_said(env):
    with pytest.raises(NotImplementedError, match="no attribute 'x'"):
        env.set_attr("x", 1)
    with pytest.raises(NotImplementedError, match="no method 'action_masks'"):
        env.env_method("action_masks")
    with pytest.raises(NotImplementedError, match="take no options in a reset"):
        env.set_options({"x": 1})
    assert env.env_is_wrapped(object) == [False] * 3 and env.get_attr("render_mode", [0]) == [None]
    pool = env.pool
    env.close()
    assert pool.closed


def test_the_missing_extra_is_named(monkeypatch):
    def missing(name):
        raise ImportError("No module named 'envpool'")

    monkeypatch.setattr(adapter.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install '\.\[envpool\]'"):
        EnvPoolVecEnv("CartPole-v1")


def test_the_view_of_minigrid():
    image = np.arange(2 * 7 * 7 * 3, dtype=np.uint8).reshape(2, 7, 7, 3)
    assert minigrid_view({"image": image, "direction": np.zeros(2)}).tolist() == image.reshape(2, -1).tolist()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*precision lowered by casting:UserWarning")
def test_with_envpool_itself():
    """Episodes of Pendulum-v1 are cut off after 200 steps"""
    pytest.importorskip("envpool")
    env = EnvPoolVecEnv("Pendulum-v1", n_envs=3, seed=1)
    first = env.reset()
    for step in range(200):
        obs, _, dones, infos = env.step(np.zeros((3, 1), dtype=np.float32))
        assert dones.all() == (step == 199)
    assert all(info["TimeLimit.truncated"] and info["terminal_observation"].shape == (3,) for info in infos)
    assert not np.allclose(obs, infos[0]["terminal_observation"])
    env.seed(1)
    np.testing.assert_array_equal(env.reset(), first)
    AAC("MlpPolicy", VecMonitor(env), n_steps=256, seed=0, device="cpu").learn(768)
