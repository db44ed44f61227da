"""
The history network: SB3's MLP on the current step (and the frames stacked before it), and attention over the trajectory, which
adds to the MLP's latent. What attention adds starts at zero, so that every network starts as SB3's and learns what to add.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from torch import nn

from sb3_attention_ac.networks.preprocessing import AgeEncoder, PreviousStepEncoder, stack_frames
from sb3_attention_ac.networks.transformer import TrajectoryEncoder
from sb3_attention_ac.type_aliases import EncoderOutput, Obs, TrajectoryWindows

Mlp = Callable[[th.Tensor], th.Tensor]


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """In this context the module can be called, and passes gradients on, but gets none itself."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def is_hooked(module: nn.Module, *passes: str) -> bool:
    """
    :param module: Any module
    :param passes: "forward" or "backward"
    :return: Whether it has hooks on one of these passes. PyTorch has no public name for them: where it has others, no
    """
    return any(getattr(module, f"_{name}{kind}_hooks", None) for name in passes for kind in ("", "_pre"))


def widened(mlp: nn.Sequential, features_dim: int, width: int) -> nn.Sequential:
    """
    An MLP that also reads what comes after the features of a step, with weights that are zero at first. Where its first layer
    is not just a ``torch.nn.Linear`` (a subclass, a hook), it stays, behind a new one that passes the current frame on.

    :param mlp: Reads the features of one step
    :param features_dim: Their width, F
    :param width: How much the new one reads, at least F
    :return: Reads [..., width], as :meth:`HistoryNetwork.mlp_input` gives it
    """
    layers: list[nn.Module] = list(mlp)
    first: Any = layers.pop(0) if layers and _is_plain_linear(layers[0]) else None
    has_bias = first is None or first.bias is not None
    wide = nn.Linear(width, features_dim if first is None else first.out_features, bias=has_bias)
    with th.no_grad():
        wide.weight.zero_()
        wide.weight[:, :features_dim] = th.eye(features_dim) if first is None else first.weight
        if has_bias:
            wide.bias.copy_(th.zeros(features_dim) if first is None else first.bias)
    return nn.Sequential(wide, *layers)


def _is_plain_linear(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and not is_hooked(layer, "forward", "backward")


class HistoryNetwork(nn.Module):
    """
    latent_t = mlp(s_t, ..., s_{t-k+1}) + output_proj(encoder(...)_t), where ``output_proj`` is zero at initialization.

    The MLP stays where SB3 keeps it (``policy.mlp_extractor``) and is passed in.

    :param latent_dim: Width of the MLP's output
    :param n_frames: How many steps the MLP reads, 1 for the current one alone
    :param encoder: The encoder over the trajectory; None to read another network's hidden states, or nothing
    :param hidden_dim: Width of hidden states, 0 for a network without attention
    :param detach_mlp: Whether the MLP learns elsewhere: no gradient of what attention adds goes into it
    :param age_encoder: Encodes how many steps the episode has lasted, which the MLP reads too; None where it does not
    """

    def __init__(
        self,
        latent_dim: int,
        n_frames: int,
        encoder: TrajectoryEncoder | None,
        hidden_dim: int,
        detach_mlp: bool = False,
        age_encoder: AgeEncoder | None = None,
    ):
        super().__init__()
        self.n_previous = n_frames - 1
        self.age_encoder = age_encoder or AgeEncoder(False)
        self.detach_mlp = detach_mlp
        self.encoder = encoder
        self.output_proj = nn.Linear(hidden_dim, latent_dim, bias=False) if hidden_dim > 0 else None
        if self.output_proj is not None:
            nn.init.zeros_(self.output_proj.weight)

    def mlp_input(self, features: th.Tensor, episode_ids: th.Tensor, ages: th.Tensor, n_landmarks: int = 0) -> th.Tensor:
        """
        :param features: Of every step, [N, W, F]
        :param episode_ids: [N, W]
        :param ages: [N, W]
        :param n_landmarks: How many of the W steps, the first ones, are landmarks
        :return: What the MLP reads, [N, W, F * n_frames + age_encoder.dim]
        """
        return self.with_age(stack_frames(features, episode_ids, self.n_previous, n_landmarks), ages)

    def with_age(self, frames: th.Tensor, ages: th.Tensor) -> th.Tensor:
        """:return: Stacked frames, [..., D], followed by the encoded ages, [..., D + age_encoder.dim]"""
        return th.cat([frames, self.age_encoder(ages)], dim=-1) if self.age_encoder.dim > 0 else frames

    def combine(self, mlp_latent: th.Tensor, hidden: th.Tensor | None) -> EncoderOutput:
        """
        :param mlp_latent: [..., latent_dim]
        :param hidden: [..., hidden_dim]
        :return: Both together
        """
        latent = mlp_latent if self.output_proj is None or hidden is None else mlp_latent + self.output_proj(hidden)
        return EncoderOutput(latent, mlp_latent, hidden)

    def forward(
        self,
        mlp: Mlp,
        features: th.Tensor,
        previous_steps: th.Tensor,
        windows: TrajectoryWindows,
        n_queries: int,
        hidden: th.Tensor | None = None,
        attends: bool = True,
    ) -> EncoderOutput:
        """
        :param mlp: SB3's MLP
        :param features: Of every step, [N, W, F]
        :param previous_steps: Previous action and reward and age of each step, encoded, [N, W, previous_dim]
        :param windows: The windows these are of
        :param n_queries: How many of the last steps to return
        :param hidden: Another network's hidden states of these, [N, n_queries, hidden_dim], for one without an encoder
        :param attends: Whether to ask the encoder
        :return: What is made of the last steps, [N, n_queries, ...]
        """
        with th.set_grad_enabled(th.is_grad_enabled() and not self.detach_mlp):
            mlp_latent = mlp(self.mlp_input(features, windows.episode_ids, windows.ages, windows.n_landmarks))
        if self.encoder is not None and attends:
            tokens = self.encoder.embed(mlp_latent, previous_steps)
            hidden = self.encoder(tokens, windows.episode_ids, n_queries, noise_ids=windows.noise_ids)
        return self.combine(mlp_latent[:, -n_queries:], hidden)


class HistoryEncoder:
    """
    The way from raw steps to latents: features extractor, MLP and history network, which the policy owns.

    :param extract: From a plain batch of observations [N, *obs_shape] to features [N, F]
    :param mlp: SB3's MLP
    :param network: The history network
    :param encode_previous: Encodes what a step knows beside its observation: previous action and reward, age
    """

    def __init__(
        self, extract: Callable[[Obs], th.Tensor], mlp: Mlp, network: HistoryNetwork, encode_previous: PreviousStepEncoder
    ):
        self.extract, self.mlp, self.network, self.encode_previous = extract, mlp, network, encode_previous

    def features(self, windows: TrajectoryWindows) -> th.Tensor:
        """:return: Features of every step, [N, W, F]"""
        with th.set_grad_enabled(th.is_grad_enabled() and not self.network.detach_mlp):
            features = self.extract(windows.flat_observations())
        return features.reshape(*windows.episode_ids.shape, -1)  # [N * W, F] -> [N, W, F]

    def __call__(
        self,
        windows: TrajectoryWindows,
        features: th.Tensor,
        n_queries: int,
        hidden: th.Tensor | None = None,
        attends: bool = True,
    ) -> EncoderOutput:
        """As :meth:`HistoryNetwork.forward`, of N windows"""
        previous_steps = self.encode_previous(
            windows.previous_actions, windows.previous_rewards, windows.ages, windows.episode_starts
        )
        output: EncoderOutput = self.network(self.mlp, features, previous_steps, windows, n_queries, hidden, attends)
        return output
