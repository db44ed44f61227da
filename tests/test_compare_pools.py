"""Comparison: training in EnvPool's environments, with a pool that counts."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from test_compare_settings import one_job
from test_envpool import CountingPool

from sb3_attention_ac.compare.errors import CompareError
from sb3_attention_ac.compare.pools import check_vec_env, make_pool
from sb3_attention_ac.compare.run import run
from sb3_attention_ac.compare.settings import Protocol
from sb3_attention_ac.envs import envpool as adapter

PROTOCOL = Protocol(steps=64, evaluations=2, episodes=3)


class Counting(gym.Env[Any, Any]):
    """In Gymnasium: each of five steps is worth 10, so that nobody takes its returns for the pool's."""

    observation_space, action_space = CountingPool.observation_space, CountingPool.action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.t = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.zeros(3, np.float32), 10.0, self.t == 5, False, {}


@pytest.fixture
def pooled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adapter, "_make", CountingPool)
    gym.register("Counting-v0", Counting)
    yield "Counting-v0"
    del gym.registry["Counting-v0"]


@pytest.mark.parametrize("algo", ["aac", "ppo"])
@pytest.mark.parametrize("more", [{}, {"normalize": True}])
def test_training_is_in_the_pool_and_evaluation_in_gymnasium(tmp_path: Path, pooled: str, algo: str, more: Any) -> None:
    job = one_job(algo, pooled, PROTOCOL, "sb3", n_envs=2, n_steps=16, batch_size=16, vec_env="envpool", **more)
    result = run(job, tmp_path, "test")
    assert all(evaluation.returns == (50.0,) * 3 for evaluation in result.evaluations)
    # Episodes of two and of three steps, worth 1, 2, 3, ...: in 16 steps of each environment 8 and 5 of them
    assert result.evaluations[0].training is None
    assert result.evaluations[1].training == pytest.approx((8 * 3 + 5 * 6) / 13)


def test_episodes_of_a_pool(pooled: str) -> None:
    pool = make_pool(pooled, [Counting] * 2, seed=3)
    assert pool.reset()[:, 0].tolist() == [3, 4]
    infos = [pool.step(np.zeros(2))[3] for _ in range(3)]
    assert [(episode.total, episode.length) for episode in pool.episodes] == [(3, 2), (6, 3), (0, 0)]
    assert "episode" not in infos[0][0] and infos[1][0]["episode"]["r"] == 3 and infos[2][1]["episode"]["l"] == 3


def test_an_entry_cannot_have_any_pool(pooled: str) -> None:
    with pytest.raises(CompareError, match=r"vec_env is 'threads' for ppo on Counting-v0; give one of"):
        one_job("ppo", pooled, PROTOCOL, "sb3", vec_env="threads")


@pytest.mark.parametrize(
    "entry",
    [
        {"env_kwargs": {"is_slippery": False}},
        {"env_wrapper": "rl_zoo3.wrappers.MaskVelocityWrapper"},
        {"env_wrapper": ["sb3_attention_ac.envs.minigrid.MiniGridView", {"gymnasium.wrappers.TimeLimit": {}}]},
    ],
)
def test_a_pool_is_nothing_that_an_entry_changes(pooled: str, entry: dict[str, Any]) -> None:
    """It would be changed in evaluations alone"""
    ignored = rf"vec_env is 'envpool' for ppo on Counting-v0, which ignores {next(iter(entry))}="
    with pytest.raises(CompareError, match=ignored):
        one_job("ppo", pooled, PROTOCOL, "sb3", vec_env="envpool", **entry)
    check_vec_env({"vec_env": "envpool", "env_wrapper": "sb3_attention_ac.envs.minigrid.MiniGridView"}, "it is the pool's own")
    check_vec_env(entry, "Gymnasium's may be changed")


def test_a_pool_has_no_action_masks(pooled: str) -> None:
    class Masked(Counting):
        def action_masks(self) -> np.ndarray:
            return np.ones(4, dtype=bool)

    with pytest.raises(CompareError, match="has action masks"):
        make_pool(pooled, [Masked], seed=0)


def test_a_pool_that_shows_something_else(pooled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountingPool, "action_space", spaces.Discrete(5))
    with pytest.raises(CompareError, match=r"has other spaces than Gymnasium's .* actions Discrete\(5\) and Discrete"):
        make_pool(pooled, [Counting], seed=0)


def test_the_missing_extra_is_named(pooled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **kwargs: Any) -> Any:
        raise ImportError("EnvPoolVecEnv needs envpool: pip install '.[envpool]'")

    monkeypatch.setattr(adapter, "_make", missing)
    with pytest.raises(CompareError, match=r"EnvPool cannot make Counting-v0: .* pip install"):
        make_pool(pooled, [Counting], seed=0)


def test_the_view_of_minigrid_where_an_entry_wraps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Grid(CountingPool):
        observation_space: Any = spaces.Dict({"image": spaces.Box(0, 255, (7, 7, 3), np.uint8)})

        def reset(self, ids: Any = None) -> Any:
            return {"image": np.full((len(self.state), 7, 7, 3), 2, np.uint8)}, {}

    class Viewed(Counting):
        observation_space = spaces.Box(0, 10, (147,), np.uint8)

    monkeypatch.setattr(adapter, "_make", Grid)
    pool = make_pool("Counting-v0", [Viewed] * 2, seed=0)
    assert pool.observation_space == Viewed.observation_space and pool.reset().shape == (2, 147)
