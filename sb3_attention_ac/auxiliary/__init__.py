"""Self-supervised losses: masked prediction, next-step prediction, and the recent trajectories they draw from."""

from collections.abc import Sequence
from typing import Any

from gymnasium import spaces
from torch import nn

from sb3_attention_ac.auxiliary.masked_prediction import MaskedPrediction
from sb3_attention_ac.auxiliary.next_step_prediction import NextStepPrediction
from sb3_attention_ac.networks.preprocessing import action_encoding_dim


def build_auxiliary(
    targets: Sequence[str],
    temperature: float,
    d_model: int,
    acting_dim: int,
    extractor: Any,
    mlp: nn.Module,
    latent_dim: int,
    action_space: spaces.Space[Any],
) -> tuple[MaskedPrediction | None, NextStepPrediction | None]:
    """
    :param targets: What is predicted: "next_step", and targets of the masked prediction
    :param temperature: Temperature of the contrastive loss
    :param d_model: Width of the encoder's hidden states
    :param acting_dim: Width of the features that the network that acts reads (a memory actor's, else the critic's)
    :param extractor: Features extractor before the encoder that the critic reads
    :param mlp: MLP before that encoder
    :param latent_dim: Width of its output
    :param action_space: The action space
    :return: The modules that are asked for
    """
    next_step = masked = None
    if "next_step" in targets:
        next_step = NextStepPrediction(d_model, action_encoding_dim(action_space), acting_dim)
    rest = tuple(target for target in targets if target != "next_step")
    if rest:
        masked = MaskedPrediction(rest, d_model, extractor, extractor.features_dim, mlp, latent_dim, action_space, temperature)
    return masked, next_step
