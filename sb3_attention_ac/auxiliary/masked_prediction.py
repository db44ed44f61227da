"""
Masked prediction: leave steps out of a trajectory and predict them from the rest (after BERT, Devlin et al. 2018,
https://arxiv.org/abs/1810.04805, and M-CURL, Zhu et al. 2020, https://arxiv.org/abs/2010.07470).

Masking step t hides s_t from token t and from the stacked frames of later steps, and a_t and r_t from token t + 1. Attention
goes both ways here, within one episode, with the weights of the causal critic.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch as th
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import polyak_update
from torch import nn

from sb3_attention_ac.auxiliary.normalization import TargetNormalizer
from sb3_attention_ac.auxiliary.targets import FROM_KEYS
from sb3_attention_ac.distributed import averaged
from sb3_attention_ac.networks.history_network import HistoryEncoder
from sb3_attention_ac.networks.preprocessing import PREVIOUS_REWARD, PREVIOUS_STEP_KEYS, encode_actions
from sb3_attention_ac.type_aliases import AuxiliaryBatch, AuxiliaryLoss, Obs, TrajectoryWindows

KEY_TAU = 0.05  # of the EMA key encoder, as in M-CURL
NEAR_DUPLICATES = 4  # steps this close in the same episode are no negatives: they look alike
MAX_SPAN = 4  # a masked stretch of steps is this long at most


def sample_mask(eligible: th.Tensor, mask_ratio: float) -> th.Tensor:
    """
    Mask short stretches of steps, because a single observation is nearly given by its neighbours.

    :param eligible: Where steps may be masked, [N, W]
    :param mask_ratio: About which share of them to mask
    :return: True where masked, [N, W]
    """
    mean_span = (1 + MAX_SPAN) / 2
    # A step stays if no span covers it: (1 - p)^mean_span = 1 - mask_ratio for starts with probability p
    start = th.rand(eligible.shape, device=eligible.device) < 1 - (1 - mask_ratio) ** (1 / mean_span)
    span = th.randint(1, MAX_SPAN + 1, eligible.shape, device=eligible.device)
    masked = th.zeros_like(start)
    for offset in range(MAX_SPAN):
        masked |= F.pad(start & (span > offset), (offset, 0))[:, : start.shape[1]]
    return masked & eligible


def masked_mean(values: th.Tensor, where: th.Tensor) -> th.Tensor:
    """
    :param values: [N, W]
    :param where: Which of them to select, [N, W]
    :return: Mean over the steps selected; 0 if there are none
    """
    return (values * where).sum() / averaged(where.sum()).clamp(min=1)


def _structure(network: nn.Module) -> list[Any]:
    return [type(module) for module in network.modules()] + [parameter.shape for parameter in network.parameters()]


class MaskedPrediction(nn.Module):
    """
    Heads that predict masked steps, and the key encoder (EMA) that makes their targets.

    :param targets: Any of "return", "observation" (the next one), "action", "reward", "contrastive"
    :param d_model: Width of the encoder's hidden states
    :param features_extractor: The features extractor before the encoder that the critic reads
    :param mlp: The MLP before that encoder
    :param latent_dim: Its width
    :param action_space: The action space
    :param temperature: Temperature of the contrastive loss (InfoNCE)
    """

    def __init__(
        self,
        targets: tuple[str, ...],
        d_model: int,
        features_extractor: BaseFeaturesExtractor,
        mlp: nn.Module,
        latent_dim: int,
        action_space: spaces.Space[Any],
        temperature: float,
    ):
        super().__init__()
        self.targets = targets
        self.temperature = temperature
        self.action_space = action_space
        widths = {
            "return": 1,
            "reward": 1,
            "action": spaces.flatdim(action_space),
            "observation": features_extractor.features_dim,
        }
        widths = {name: width for name, width in widths.items() if name in targets}
        self.normalizers = nn.ModuleDict({name: TargetNormalizer(width) for name, width in widths.items()})
        heads = {name: nn.Linear(d_model, width) for name, width in widths.items()}
        for head in heads.values():  # at initialization each prediction is its baseline's guess
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.heads = nn.ModuleDict(heads)
        if "contrastive" in targets:
            self.heads["contrastive"] = nn.Linear(d_model, latent_dim)
        self.mask_token = nn.Parameter(th.zeros(d_model))
        self.key_extractor = copy.deepcopy(features_extractor).requires_grad_(False)
        self.key_mlp = copy.deepcopy(mlp).requires_grad_(False)

    def sync_key_encoder(self, features_extractor: BaseFeaturesExtractor, mlp: nn.Module) -> None:
        """
        Start the key encoder anew where what it follows has been replaced.

        :param features_extractor: As in the constructor
        :param mlp: Likewise
        """
        if _structure(features_extractor) != _structure(self.key_extractor):
            self.key_extractor = copy.deepcopy(features_extractor).requires_grad_(False)
        if _structure(mlp) != _structure(self.key_mlp):
            self.key_mlp = copy.deepcopy(mlp).requires_grad_(False)

    @th.no_grad()
    def update_key_encoder(self, features_extractor: nn.Module, mlp: nn.Module, tau: float = KEY_TAU) -> None:
        """
        Let the key encoder follow the critic's.

        :param features_extractor: As in the constructor
        :param mlp: Likewise
        :param tau: 1 for a copy
        """
        for source, key in ((features_extractor, self.key_extractor), (mlp, self.key_mlp)):
            polyak_update(source.parameters(), key.parameters(), tau)
            for buffer, key_buffer in zip(source.buffers(), key.buffers(), strict=True):
                key_buffer.copy_(buffer)

    def forward(
        self,
        encoder: HistoryEncoder,
        extract: Callable[[Obs, nn.Module], th.Tensor],
        batch: AuxiliaryBatch,
        mask_ratio: float,
    ) -> dict[str, AuxiliaryLoss]:
        """
        :param encoder: The encoder that learns from this
        :param extract: From a plain batch of observations and a features extractor to features, for the keys
        :param batch: Windows to mask steps of
        :param mask_ratio: About which share of the steps to mask
        :return: The loss of each target beside its baseline
        """
        masked, windows = sample_mask(batch.eligible, mask_ratio), batch.windows
        hidden = self._hidden(encoder, windows, masked)
        losses = {}
        key_features = None
        if FROM_KEYS & set(self.targets):
            with th.no_grad():
                key_features = extract(windows.flat_observations(), self.key_extractor)
                key_features = key_features.reshape(*windows.episode_ids.shape, -1)  # [N * W, F] -> [N, W, F]
        for name in self.normalizers:
            losses[name] = self._regression(name, hidden, masked, batch, key_features)
        if "contrastive" in self.targets:
            assert key_features is not None
            n_zeros = key_features.shape[-1] * encoder.network.n_previous  # a key is of one step alone, without stacked frames
            key_input = encoder.network.with_age(F.pad(key_features, (0, n_zeros)), th.zeros_like(windows.ages))
            losses["contrastive"] = self._contrastive(hidden, masked, windows, key_input)
        return losses

    def _hidden(self, encoder: HistoryEncoder, windows: TrajectoryWindows, masked: th.Tensor) -> th.Tensor:
        """The encoder's hidden state of each step when the masked steps are left out, [N, W, d_model]"""
        network = encoder.network
        assert network.encoder is not None
        masked_before = F.pad(masked, (1, 0))[:, :-1]  # a_t and r_t are read by token t + 1
        hides_rewards = "return" in self.targets  # a return is a sum of rewards: none may be seen
        observations = windows.observations
        if isinstance(observations, dict):  # and stand in its observation, where a wrapper puts them there
            observations = {k: _hide(v, masked_before) if k in PREVIOUS_STEP_KEYS else v for k, v in observations.items()}
            if hides_rewards and PREVIOUS_REWARD in observations:
                observations[PREVIOUS_REWARD] = th.zeros_like(observations[PREVIOUS_REWARD])
        features = encoder.extract(windows._replace(observations=observations).flat_observations())
        features = features.reshape(*masked.shape, -1) * ~masked.unsqueeze(-1)  # [N * W, F] -> [N, W, F]
        rewards = th.zeros_like(windows.previous_rewards) if hides_rewards else windows.previous_rewards
        previous_steps = encoder.encode_previous(
            windows.previous_actions, rewards, windows.ages, windows.episode_starts | masked_before
        )
        mlp_latent = encoder.mlp(network.mlp_input(features, windows.episode_ids, windows.ages))
        tokens = network.encoder.embed(mlp_latent, previous_steps) + masked.unsqueeze(-1) * self.mask_token
        hidden: th.Tensor = network.encoder(tokens, windows.episode_ids, tokens.shape[1], causal=False)
        return hidden

    def _regression(
        self, name: str, hidden: th.Tensor, masked: th.Tensor, batch: AuxiliaryBatch, key_features: th.Tensor | None
    ) -> AuxiliaryLoss:
        """Mean squared error of a normalized target, over the masked steps"""
        windows, where = batch.windows, masked
        with th.no_grad():
            if name == "observation":
                assert key_features is not None
                target = self.normalizers[name](key_features)
                guess = _last_visible(target, masked, windows.episode_ids)
                target = F.pad(target[:, 1:], (0, 0, 0, 1))  # of step t: features of s_{t+1}
                # Only where s_{t+1} is masked as well: else predicting it would be copying it
                same_episode = windows.episode_ids[:, 1:] == windows.episode_ids[:, :-1]
                where = masked & F.pad(masked[:, 1:] & same_episode, (0, 1))
            else:
                targets = {"return": batch.returns.unsqueeze(-1), "reward": batch.rewards.unsqueeze(-1)}
                target = targets[name] if name in targets else encode_actions(batch.actions, self.action_space)
                target = self.normalizers[name](target)
                guess = th.zeros_like(target)
        # The guess comes for nothing: the head predicts what differs from it
        error = F.mse_loss(guess + self.heads[name](hidden), target, reduction="none").mean(-1)  # [N, W]
        baseline = F.mse_loss(guess, target, reduction="none").mean(-1)
        return AuxiliaryLoss(masked_mean(error, where), masked_mean(baseline, where))

    def _contrastive(
        self, hidden: th.Tensor, masked: th.Tensor, windows: TrajectoryWindows, key_input: th.Tensor
    ) -> AuxiliaryLoss:
        """InfoNCE: find the key of the masked observation among those of the window (van den Oord et al. 2018)"""
        with th.no_grad():
            keys = F.normalize(self.key_mlp(key_input), dim=-1)  # [N, W, H]
        queries = F.normalize(self.heads["contrastive"](hidden), dim=-1)
        logits = queries @ keys.transpose(1, 2) / self.temperature  # [N, W, W]
        step = th.arange(logits.shape[1], device=logits.device)
        distance = (step.unsqueeze(1) - step).abs()
        same_episode = windows.episode_ids.unsqueeze(2) == windows.episode_ids.unsqueeze(1)
        excluded = same_episode & (distance > 0) & (distance <= NEAR_DUPLICATES)
        logits = logits.masked_fill(excluded, float("-inf"))
        target = step.expand(logits.shape[:2])
        error = F.cross_entropy(logits.transpose(1, 2), target, reduction="none")  # [N, W]
        chance = (~excluded).sum(-1).float().log()
        return AuxiliaryLoss(masked_mean(error, masked), masked_mean(chance, masked))


def _hide(values: th.Tensor, where: th.Tensor) -> th.Tensor:
    """:return: Zeros in place of the values [N, W, ...] of these steps [N, W]"""
    return values * ~where.reshape(*where.shape, *(1 for _ in values.shape[2:]))


def _last_visible(features: th.Tensor, masked: th.Tensor, episode_ids: th.Tensor) -> th.Tensor:
    """
    The best copy at hand for a masked observation.

    :param features: [N, W, F], normalized
    :param masked: [N, W]
    :param episode_ids: [N, W]
    :return: For each step the features of the last visible step of its episode up to it; zeros (the mean) if there is none
    """
    step = th.arange(masked.shape[1], device=masked.device)
    last = th.where(masked, -1, step).cummax(dim=1).values  # [N, W]
    found = last.clamp(min=0)
    copied = features.gather(1, found.unsqueeze(-1).expand_as(features))
    same_episode = (last >= 0) & (episode_ids.gather(1, found) == episode_ids)
    return copied * same_episode.unsqueeze(-1)
