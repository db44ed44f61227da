"""Attention Actor-Critic (AAC) for stable-baselines3."""

from pathlib import Path

from sb3_attention_ac.aac import AAC, AttentionActorCritic
from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.policies import (
    AttentionActorCriticCnnPolicy,
    AttentionActorCriticMultiInputPolicy,
    AttentionActorCriticPolicy,
)

__version__ = (Path(__file__).parent / "version.txt").read_text().strip()

__all__ = [
    "AAC",
    "AttentionActorCritic",
    "AttentionActorCriticCnnPolicy",
    "AttentionActorCriticMultiInputPolicy",
    "AttentionActorCriticPolicy",
    "TrajectoryRolloutBuffer",
]
