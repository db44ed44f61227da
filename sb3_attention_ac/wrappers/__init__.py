"""
Wrappers for any Gymnasium environment: what the agent did last, hidden constants, sensors that fail, action masks.

- :class:`PreviousActionReward`, :class:`VecPreviousActionReward`: the last action and reward as part of the observation
- :class:`HiddenConstants`: gravity, masses, friction and so on, resampled in each episode, for the critic only
- :class:`FailingSensors`, :class:`PositionOnly`, :class:`VelocityOnly`: sensors that fail now and then, or are missing
- :class:`MaskedBattleship`: POPGym's Battleship with action masks, a task that needs masks and memory
"""

from sb3_attention_ac.networks.preprocessing import PREVIOUS_ACTION, PREVIOUS_REWARD
from sb3_attention_ac.wrappers.battleship import MaskedBattleship
from sb3_attention_ac.wrappers.hidden_constants import HiddenConstants
from sb3_attention_ac.wrappers.previous_step import OBSERVATION, PreviousActionReward, VecPreviousActionReward
from sb3_attention_ac.wrappers.sensors import FailingSensors, PositionOnly, VelocityOnly

__all__ = [
    "OBSERVATION",
    "PREVIOUS_ACTION",
    "PREVIOUS_REWARD",
    "FailingSensors",
    "HiddenConstants",
    "MaskedBattleship",
    "PositionOnly",
    "PreviousActionReward",
    "VecPreviousActionReward",
    "VelocityOnly",
]
