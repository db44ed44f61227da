"""The example's submarine, registered, and a wrapper that keeps masks from an algorithm that would take them."""

from typing import Any

import gymnasium as gym

gym.register("Submarine-v0", "examples.masks_and_memory:Submarine")


class WithoutMasks(gym.Wrapper[Any, Any, Any, Any]):
    """Nobody is told which actions are allowed."""

    def has_wrapper_attr(self, name: str) -> bool:
        return name != "action_masks" and super().has_wrapper_attr(name)

    def get_wrapper_attr(self, name: str) -> Any:
        if name == "action_masks":
            raise AttributeError(name)
        return super().get_wrapper_attr(name)
