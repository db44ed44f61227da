"""
The trunk of a network that looks back: SB3's MLP on the current step, a local window on the last few steps, and attention
over the trajectory. The last two start at zero, so that every trunk starts as SB3's MLP and learns what to add.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch as th
import torch.nn.functional as F
from torch import nn

from sb3_attention_ac.encoder import TrajectoryEncoder
from sb3_attention_ac.stand_in import is_plain


class TrunkOutput(NamedTuple):
    """
    :param latents: What the MLP and attention say together, [..., latent_dim]
    :param mlp_latents: What the MLP says alone, [..., latent_dim]
    :param gathered: What an encoder gathered, [..., gathered_dim]; None for a trunk without attention
    """

    latents: th.Tensor
    mlp_latents: th.Tensor
    gathered: th.Tensor | None


class AttentionTrunk(nn.Module):
    """
    latent_t = mlp(s_t, s_{t-1}, ..., s_{t-k+1}) + write(encoder(...)), where the mlp's weights on s_{t-1} and older and the
    matrix ``write`` are zero at initialisation.

    The MLP itself stays where SB3 keeps it (``policy.mlp_extractor``) and is passed in. With ``mlp_is_given`` it learns
    elsewhere: no gradient of what attention gathers goes into it.

    :param mlp: The MLP whose first layer the local window feeds
    :param features_dim: Width of the features of one step
    :param latent_dim: Width of the MLP's output
    :param n_local: The local window's length k, 1 for the current step alone
    :param encoder: The encoder over the trajectory, or None to read another trunk's (``gathered_dim`` > 0) or nothing
    :param gathered_dim: Width of what an encoder gathers; 0 for a trunk without attention
    :param mlp_is_given: Whether the MLP learns elsewhere
    """

    def __init__(
        self,
        mlp: nn.Sequential,
        features_dim: int,
        latent_dim: int,
        n_local: int,
        encoder: TrajectoryEncoder | None,
        gathered_dim: int,
        mlp_is_given: bool = False,
    ):
        super().__init__()
        self.mlp_is_given = mlp_is_given
        self.n_previous = n_local - 1
        self.encoder = encoder
        first: Any = mlp[0] if len(mlp) > 0 else None
        first_dim = features_dim if first is None else first.out_features
        self.local = nn.Linear(self.n_previous * features_dim, first_dim, bias=False) if self.n_previous > 0 else None
        self.write = nn.Linear(gathered_dim, latent_dim, bias=False) if gathered_dim > 0 else None
        for layer in (self.local, self.write):
            if layer is not None:
                nn.init.zeros_(layer.weight)

    def latents(self, mlp: Sequence[Any] | nn.Sequential, recent: th.Tensor) -> th.Tensor:
        """
        The MLP with its local window.

        :param mlp: SB3's MLP, or its layers
        :param recent: Features of the last steps of the same episode, as :func:`local_window` gives them,
            [..., F * (1 + n_previous)]
        :return: [..., latent_dim]
        """
        first, *others = mlp if len(mlp) > 0 else [nn.Identity()]
        if self.local is None:
            hidden: th.Tensor = first(recent)
        elif type(first) is nn.Linear and is_plain(first):  # both at once
            hidden = F.linear(recent, th.cat([first.weight, self.local.weight], dim=1), first.bias)
        else:
            features, previous = recent.tensor_split([recent.shape[-1] - self.local.in_features], dim=-1)
            hidden = first(features) + self.local(previous)
        for layer in others:  # a slice of the MLP would be another module, made for each step
            hidden = layer(hidden)
        return hidden

    def _learning_latents(self, mlp: nn.Sequential, recent: th.Tensor) -> th.Tensor:
        """:meth:`latents`, without a gradient if the MLP learns elsewhere"""
        with th.set_grad_enabled(th.is_grad_enabled() and not self.mlp_is_given):
            return self.latents(mlp, recent)

    def add_gathered(self, mlp_latents: th.Tensor, gathered: th.Tensor | None) -> TrunkOutput:
        """
        :param mlp_latents: [..., latent_dim]
        :param gathered: [..., gathered_dim]
        :return: Both together
        """
        latents = mlp_latents if self.write is None or gathered is None else mlp_latents + self.write(gathered)
        return TrunkOutput(latents, mlp_latents, gathered)

    def forward(
        self,
        mlp: nn.Sequential,
        recent: th.Tensor,
        events: th.Tensor,
        episode_ids: th.Tensor,
        n_queries: int,
    ) -> TrunkOutput:
        """
        What a trunk with an encoder makes of windows.

        :param mlp: SB3's MLP
        :param recent: Features, as :func:`local_window` gives them, [N, W, F * (1 + n_previous)]
        :param events: [N, W, event_dim]
        :param episode_ids: [N, W]
        :param n_queries: How many of the last steps to return
        :return: What is made of the last steps, [N, n_queries, ...]
        """
        assert self.encoder is not None
        latents = self._learning_latents(mlp, recent)
        gathered = self.encoder(self.encoder.tokens(latents, events), episode_ids, n_queries)
        return self.add_gathered(latents[:, -n_queries:], gathered)

    def read(self, mlp: nn.Sequential, recent: th.Tensor, gathered: th.Tensor | None) -> TrunkOutput:
        """
        What a trunk without an encoder makes of steps.

        :param mlp: SB3's MLP
        :param recent: Features, as :func:`local_window` gives them, [..., F * (1 + n_previous)]
        :param gathered: What another trunk's encoder gathered for these steps, [..., gathered_dim]; None for nothing
        :return: What is made of them, [..., ...]
        """
        return self.add_gathered(self._learning_latents(mlp, recent), gathered)
