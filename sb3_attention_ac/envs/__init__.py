"""
Small environments that need memory, registered with Gymnasium on import::

    import gymnasium as gym

    import sb3_attention_ac.envs  # registers them; RL Zoo: --gym-packages sb3_attention_ac.envs

    env = gym.make("PassiveTMaze-v0", corridor_length=100)

The sizes of published tables have names of their own, so that a configuration file and a table can tell them apart:

- ``PassiveTMaze<L>-v0``: corridor of L = 10, 20, 50, 100, 250, 500 or 1000 steps
- ``EndlessTMaze<n>-v0`` and ``EndlessTMazeUniform<n>-v0``: n = 1, 3, 5 or 10 corridors of length 10, or of 1 to 10
- ``EndlessTMaze<n>x<L>-v0``: n corridors of length L, 3 of 50 or 5 of 100
- ``GridTMaze<L>-v0``: corridor of L = 8, 16, 32, 64 or 128 cells
- ``<task>PositionOnly-v5``, ``<task>VelocityOnly-v5`` and ``<task>FailingSensors-v5``: MuJoCo's Ant, HalfCheetah, Hopper and
  Walker2d in the wrappers of these names

Each maze names the source of its definition and reports ``info["is_success"]`` at the end of an episode, which SB3
logs as ``rollout/success_rate``.
"""

from typing import Any

from gymnasium.envs.registration import register, spec

from sb3_attention_ac.envs.base import Maze
from sb3_attention_ac.envs.endless_tmaze import EndlessTMaze
from sb3_attention_ac.envs.grid_tmaze import GridTMaze
from sb3_attention_ac.envs.noisy_tmaze import NoisyTMaze
from sb3_attention_ac.envs.passive_tmaze import PassiveTMaze
from sb3_attention_ac.wrappers.sensors import FailingSensors, PositionOnly, VelocityOnly

__all__ = ["EndlessTMaze", "GridTMaze", "NoisyTMaze", "PassiveTMaze"]


def _register(environment: type[Maze], name: str = "", **kwargs: Any) -> None:
    entry_point = f"{environment.__module__}:{environment.__name__}"
    register(f"{name or environment.__name__}-v0", entry_point=entry_point, kwargs=kwargs)


for _environment in (EndlessTMaze, GridTMaze, NoisyTMaze, PassiveTMaze):
    _register(_environment)
for _length in (10, 20, 50, 100, 250, 500, 1000):
    _register(PassiveTMaze, f"PassiveTMaze{_length}", corridor_length=_length)
for _length in (8, 16, 32, 64, 128):
    _register(GridTMaze, f"GridTMaze{_length}", corridor_length=_length)
for _n in (1, 3, 5, 10):
    _register(EndlessTMaze, f"EndlessTMaze{_n}", n_corridors=_n)
    _register(EndlessTMaze, f"EndlessTMazeUniform{_n}", n_corridors=_n, lengths="uniform")
for _n, _length in ((3, 50), (5, 100)):
    _register(EndlessTMaze, f"EndlessTMaze{_n}x{_length}", n_corridors=_n, corridor_length=_length)
for _task in ("Ant", "HalfCheetah", "Hopper", "Walker2d"):  # MuJoCo itself is imported by gym.make
    _spec = spec(f"{_task}-v5")
    for _wrapper in (PositionOnly, VelocityOnly, FailingSensors):
        register(
            f"{_task}{_wrapper.__name__}-v5",
            entry_point=_spec.entry_point,
            reward_threshold=_spec.reward_threshold,
            max_episode_steps=_spec.max_episode_steps,
            additional_wrappers=(*_spec.additional_wrappers, _wrapper.wrapper_spec()),
        )
