"""MuJoCo tasks of Gymnasium that show a part of their observation, under names of their own."""

import gymnasium as gym

from sb3_attention_ac.wrappers.sensors import FailingSensors, PositionOnly, VelocityOnly

TASKS = ("Ant", "HalfCheetah", "Hopper", "Walker2d")


def register_partly_observed() -> None:
    """Register each task with each wrapper, e.g. ``HopperPositionOnly-v5``. MuJoCo itself is imported by ``gym.make``."""
    for task in TASKS:
        spec = gym.spec(f"{task}-v5")
        for wrapper in (PositionOnly, VelocityOnly, FailingSensors):
            gym.register(
                f"{task}{wrapper.__name__}-v5",
                entry_point=spec.entry_point,
                reward_threshold=spec.reward_threshold,
                max_episode_steps=spec.max_episode_steps,
                additional_wrappers=(*spec.additional_wrappers, wrapper.wrapper_spec()),
            )
