"""
The masked prediction: leave memories out of a trajectory and predict them from the rest (after BERT, Devlin et al. 2018,
https://arxiv.org/abs/1810.04805, and M-CURL, Zhu et al. 2020, https://arxiv.org/abs/2010.07470).

Leaving out memory t hides s_t from token t and from every later local window, and a_t and r_t from token t + 1. Attention
goes both ways here, within one episode, with the weights of the causal critic.
"""

import copy
from typing import TYPE_CHECKING, NamedTuple

import torch as th
import torch.nn.functional as F
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import polyak_update
from torch import nn

from sb3_attention_ac.trajectory import TrajectoryWindows, encode_actions, local_window

if TYPE_CHECKING:
    from sb3_attention_ac.trajectory_policy import TrajectoryPolicy

KEY_TAU = 0.05  # of the EMA key encoder, as in M-CURL
NEAR_DUPLICATES = 4  # steps this close in the same episode are no negatives: they look alike
MAX_SPAN = 4  # a left-out stretch of steps is this long at most


class AuxiliaryBatch(NamedTuple):
    """
    N windows of W steps to leave memories out of.

    :param windows: The windows
    :param actions: a_t, [N, W, action_dim]
    :param rewards: r_t, [N, W]
    :param returns: Return-to-go from t, the TD(lambda) return of the rollout it comes from, [N, W]
    :param eligible: Whether memory t may be left out, [N, W]
    """

    windows: TrajectoryWindows
    actions: th.Tensor
    rewards: th.Tensor
    returns: th.Tensor
    eligible: th.Tensor


class AuxiliaryLoss(NamedTuple):
    """
    :param loss: The loss of one target
    :param baseline: The same loss for a guess: the mean (return, action, reward), the last visible observation
        (observation), or chance, the logarithm of the number of candidates (contrastive)
    """

    loss: th.Tensor
    baseline: th.Tensor


def sample_mask(eligible: th.Tensor, mask_ratio: float) -> th.Tensor:
    """
    Leave out short stretches of steps, because a single observation is nearly given by its neighbours.

    :param eligible: Where steps may be left out, [N, W]
    :param mask_ratio: About which share of them to leave out
    :return: True where left out, [N, W]
    """
    mean_span = (1 + MAX_SPAN) / 2
    # A step stays if no span covers it: (1 - p)^mean_span = 1 - mask_ratio for starts with probability p
    start = th.rand(eligible.shape, device=eligible.device) < 1 - (1 - mask_ratio) ** (1 / mean_span)
    span = th.randint(1, MAX_SPAN + 1, eligible.shape, device=eligible.device)
    hidden = th.zeros_like(start)
    for offset in range(MAX_SPAN):
        hidden |= F.pad(start & (span > offset), (offset, 0))[:, : start.shape[1]]
    return hidden & eligible


def masked_mean(values: th.Tensor, where: th.Tensor) -> th.Tensor:
    """
    :param values: [N, W]
    :param where: Which of them to select, [N, W]
    :return: Mean over the steps selected; 0 if there are none
    """
    return (values * where).sum() / where.sum().clamp(min=1)


def normalized(scale: nn.Module, target: th.Tensor) -> th.Tensor:
    """
    :param scale: A ``BatchNorm1d`` of width D, without an affine part
    :param target: [N, W, D]
    :return: Same shape, about zero mean and unit variance
    """
    assert isinstance(scale, nn.BatchNorm1d) and scale.running_mean is not None
    flat = target.flatten(0, 1)  # [N * W, D]
    # Where a target is not finite training stops at the losses; its running statistics stay as good as the parameters
    flat = th.where(th.isfinite(flat), flat, scale.running_mean)
    if len(flat) > 1:
        scaled: th.Tensor = scale(flat)
    else:  # one target alone has no variance
        scaled = F.batch_norm(flat, scale.running_mean, scale.running_var, eps=scale.eps)
    return scaled.reshape(target.shape)


class MaskedPrediction(nn.Module):
    """
    Heads that predict left-out memories, and the key encoder (EMA) that makes their targets.

    :param targets: Any of "return", "observation" (the next one), "action", "reward", "contrastive"
    :param d_model: Width of what the encoder gathers
    :param features_extractor: The critic's features extractor
    :param mlp: The MLP before the encoder
    :param latent_dim: Its width
    :param action_dim: Width of encoded actions
    :param temperature: omega, of the contrastive loss
    """

    def __init__(
        self,
        targets: tuple[str, ...],
        d_model: int,
        features_extractor: BaseFeaturesExtractor,
        mlp: nn.Sequential,
        latent_dim: int,
        action_dim: int,
        temperature: float,
    ):
        super().__init__()
        self.targets = targets
        self.temperature = temperature
        widths = {"return": 1, "reward": 1, "action": action_dim, "observation": features_extractor.features_dim}
        widths = {name: width for name, width in widths.items() if name in targets}
        # Targets of any scale: normalized by their running mean and standard deviation
        self.normalizers = nn.ModuleDict({name: nn.BatchNorm1d(width, affine=False) for name, width in widths.items()})
        heads = {name: nn.Linear(d_model, width) for name, width in widths.items()}
        for head in heads.values():  # at initialisation each prediction is its baseline's guess
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.heads = nn.ModuleDict(heads)
        if "contrastive" in targets:
            self.heads["contrastive"] = nn.Linear(d_model, latent_dim)
        self.mask_token = nn.Parameter(th.zeros(d_model))
        self.key_extractor = copy.deepcopy(features_extractor).requires_grad_(False)
        self.key_mlp = copy.deepcopy(mlp).requires_grad_(False)

    @th.no_grad()
    def update_key_encoder(self, policy: "TrajectoryPolicy", tau: float = KEY_TAU) -> None:
        """
        Let the key encoder follow the critic's (features extractor and MLP).

        :param policy: The policy this belongs to
        :param tau: 1 for a copy
        """
        _, mlp = policy.encoder_trunk()
        for source, key in ((policy.vf_features_extractor, self.key_extractor), (mlp, self.key_mlp)):
            polyak_update(source.parameters(), key.parameters(), tau)
            for buffer, key_buffer in zip(source.buffers(), key.buffers(), strict=True):
                key_buffer.copy_(buffer)

    def forward(self, policy: "TrajectoryPolicy", batch: AuxiliaryBatch, mask_ratio: float) -> dict[str, AuxiliaryLoss]:
        """
        :param policy: The policy this belongs to
        :param batch: Windows to leave memories out of
        :param mask_ratio: About which share of the memories to leave out
        :return: The loss of each target beside its baseline
        """
        hidden = sample_mask(batch.eligible, mask_ratio)
        gathered = self._gather(policy, batch.windows, hidden)
        losses = {name: self._regression(name, gathered, hidden, batch, policy) for name in self.normalizers}
        if "contrastive" in self.targets:
            losses["contrastive"] = self._contrastive(gathered, hidden, batch.windows, policy)
        return losses

    def _gather(self, policy: "TrajectoryPolicy", windows: TrajectoryWindows, hidden: th.Tensor) -> th.Tensor:
        """What the encoder gathers for each step when the hidden memories are left out, [N, W, d_model]"""
        trunk, mlp = policy.encoder_trunk()
        assert trunk.encoder is not None
        shared = trunk is not policy.critic_trunk
        extractor = policy.pi_features_extractor if shared else policy.vf_features_extractor
        features = policy.window_features(windows, extractor) * ~hidden.unsqueeze(-1)
        reads_rewards = policy.critic_reads_rewards and not shared
        # a_t and r_t are read by token t + 1
        nothing_before = windows.episode_starts | F.pad(hidden, (1, 0))[:, :-1]
        rewards = windows.previous_rewards
        if "return" in self.targets:  # A return is a sum of rewards: none may be seen
            rewards = th.zeros_like(rewards)
        events = policy.encode_events(windows.previous_actions, nothing_before, rewards if reads_rewards else None)
        recent = local_window(features, windows.episode_ids, trunk.n_previous)
        tokens = trunk.encoder.tokens(trunk.latents(mlp, recent), events) + hidden.unsqueeze(-1) * self.mask_token
        gathered: th.Tensor = trunk.encoder(tokens, windows.episode_ids, tokens.shape[1], causal=False)
        return gathered

    def _regression(
        self,
        name: str,
        gathered: th.Tensor,
        hidden: th.Tensor,
        batch: AuxiliaryBatch,
        policy: "TrajectoryPolicy",
    ) -> AuxiliaryLoss:
        """Mean squared error of a normalized target, over the hidden memories"""
        windows, where = batch.windows, hidden
        with th.no_grad():
            if name == "observation":
                target = normalized(self.normalizers[name], policy.window_features(windows, self.key_extractor))
                guess = _last_visible(target, hidden, windows.episode_ids)
                target = F.pad(target[:, 1:], (0, 0, 0, 1))  # of step t: features of s_{t+1}
                # Only where s_{t+1} is hidden as well: else predicting it would be copying it
                same_episode = windows.episode_ids[:, 1:] == windows.episode_ids[:, :-1]
                where = hidden & F.pad(hidden[:, 1:] & same_episode, (0, 1))
            else:
                targets = {"return": batch.returns.unsqueeze(-1), "reward": batch.rewards.unsqueeze(-1)}
                raw = targets[name] if name in targets else encode_actions(batch.actions, policy.action_space)
                target = normalized(self.normalizers[name], raw)
                guess = th.zeros_like(target)
        # The guess comes for nothing: the head predicts what differs from it
        error = F.mse_loss(guess + self.heads[name](gathered), target, reduction="none").mean(-1)  # [N, W]
        baseline = F.mse_loss(guess, target, reduction="none").mean(-1)
        return AuxiliaryLoss(masked_mean(error, where), masked_mean(baseline, where))

    def _contrastive(
        self, gathered: th.Tensor, hidden: th.Tensor, windows: TrajectoryWindows, policy: "TrajectoryPolicy"
    ) -> AuxiliaryLoss:
        """InfoNCE: find the key of the hidden observation among those of the window (van den Oord et al. 2018)"""
        with th.no_grad():
            keys = F.normalize(self.key_mlp(policy.window_features(windows, self.key_extractor)), dim=-1)  # [N, W, H]
        queries = F.normalize(self.heads["contrastive"](gathered), dim=-1)
        logits = queries @ keys.transpose(1, 2) / self.temperature  # [N, W, W]
        step = th.arange(logits.shape[1], device=logits.device)
        distance = (step.unsqueeze(1) - step).abs()
        same_episode = windows.episode_ids.unsqueeze(2) == windows.episode_ids.unsqueeze(1)
        excluded = same_episode & (distance > 0) & (distance <= NEAR_DUPLICATES)
        logits = logits.masked_fill(excluded, float("-inf"))
        target = step.expand(logits.shape[:2])
        error = F.cross_entropy(logits.transpose(1, 2), target, reduction="none")  # [N, W]
        chance = (~excluded).sum(-1).float().log()
        return AuxiliaryLoss(masked_mean(error, hidden), masked_mean(chance, hidden))


def _last_visible(features: th.Tensor, hidden: th.Tensor, episode_ids: th.Tensor) -> th.Tensor:
    """
    The best copy at hand for a left-out observation.

    :param features: [N, W, F], normalized
    :param hidden: [N, W]
    :param episode_ids: [N, W]
    :return: For each step the features of the last visible step of its episode up to it; zeros (the mean) if there is none
    """
    step = th.arange(hidden.shape[1], device=hidden.device)
    last = th.where(hidden, -1, step).cummax(dim=1).values  # [N, W]
    found = last.clamp(min=0)
    copied = features.gather(1, found.unsqueeze(-1).expand_as(features))
    same_episode = (last >= 0) & (episode_ids.gather(1, found) == episode_ids)
    return copied * same_episode.unsqueeze(-1)
