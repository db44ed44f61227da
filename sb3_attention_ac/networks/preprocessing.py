"""What goes into the networks: encoded actions, rewards and ages, and the stacked frames of the last few steps."""

import math
from typing import Any

import torch as th
import torch.nn.functional as F
from gymnasium import spaces

from sb3_attention_ac.networks.constants import cached

AGE_INPUTS = (False, True, "sinusoidal")
# Entries of Dict observations that tell what happened in the step before, see sb3_attention_ac.wrappers
PREVIOUS_STEP_KEYS = PREVIOUS_ACTION, PREVIOUS_REWARD = "previous_action", "previous_reward"
LONGEST_AGE = 1000.0  # steps: a linear input must have a bound
PERIODS = tuple(2.0**i for i in range(2, 11))  # steps, of the sinusoidal position encoding: 4, 8, ..., 1024


def encode_actions(actions: th.Tensor, action_space: spaces.Space[Any]) -> th.Tensor:
    """
    Actions as network input: one-hot for discrete actions, squashed for continuous ones.

    :param actions: As stored in the buffer (before clipping to the bounds of a Box), [..., action_dim]
    :param action_space: Box, Discrete, MultiDiscrete or MultiBinary
    :return: [..., spaces.flatdim(action_space)]
    """
    if isinstance(action_space, spaces.Discrete):
        return one_hot(actions, int(action_space.n))
    if isinstance(action_space, spaces.MultiDiscrete):
        parts = zip(actions.split(1, dim=-1), action_space.nvec, strict=True)
        return th.cat([one_hot(part, int(n)) for part, n in parts], dim=-1)
    if isinstance(action_space, spaces.MultiBinary):
        return actions.float()
    return symlog(actions.float())


def one_hot(categories: th.Tensor, n: int) -> th.Tensor:
    """
    :param categories: [..., 1]
    :param n: How many there are
    :return: [..., n]; quicker than PyTorch's, which looks at all of them first
    """
    return (categories == th.arange(n, device=categories.device)).float()


def symlog(x: th.Tensor) -> th.Tensor:
    """Squash any scale, keeping the sign: sign(x) ln(1 + abs(x)) (Hafner et al. 2023, https://arxiv.org/abs/2301.04104)."""
    return th.sign(x) * th.log1p(th.abs(x))


@cached
def _periods(dtype: th.dtype, device: th.device) -> th.Tensor:
    return th.tensor(PERIODS, dtype=dtype, device=device)


class AgeEncoder:
    """
    Encodes how many steps the episode has lasted.

    - True: a logarithmic and a linear (bounded) view, both zero at an episode's first step. Softmax attention returns means; a
      count is a mean times a number of steps, so that number has to be an input
    - "sinusoidal": these, and the sinusoidal position encoding (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762) of
      that number. Rotary embedding tells how far back a step is, this tells which step of the episode it is: with it a query
      finds the n-th step, or one whose distance depends on the current one, by a linear map

    :param age_input: False to encode nothing
    """

    def __init__(self, age_input: bool | str):
        self.sinusoidal = age_input == "sinusoidal"
        self.dim = 2 * bool(age_input) + 2 * len(PERIODS) * self.sinusoidal

    def __call__(self, ages: th.Tensor) -> th.Tensor:
        """
        :param ages: Steps since the episode began, [...]
        :return: [..., dim]
        """
        if self.dim == 0:
            return ages.new_zeros((*ages.shape, 0))
        views = th.stack([th.log1p(ages) / 2, ages.clamp(max=LONGEST_AGE) / 50], dim=-1)  # [..., 2]
        if not self.sinusoidal:
            return views
        periods = _periods(ages.dtype, ages.device)
        # The remainder first: it is exact, so that late in a long episode the angle is as precise as at its start
        angles = ages.unsqueeze(-1).remainder(periods) / periods * (2 * math.pi)  # [..., n_periods]
        return th.cat([views, angles.sin(), angles.cos()], dim=-1)


class PreviousStepEncoder:
    """
    Encodes what a step knows beside its observation. What happened before the first step of an episode is zero.

    :param action_space: Box, Discrete, MultiDiscrete or MultiBinary
    :param reads_actions: Whether previous actions are read
    :param reads_rewards: Whether previous rewards are read
    :param age_encoder: Encodes the number of steps since the episode began
    """

    def __init__(self, action_space: spaces.Space[Any], reads_actions: bool, reads_rewards: bool, age_encoder: AgeEncoder):
        self.action_space = action_space
        self.reads_actions, self.reads_rewards, self.age_encoder = reads_actions, reads_rewards, age_encoder
        action_dim = spaces.flatdim(action_space) if reads_actions else 0
        self.dim = action_dim + int(reads_rewards) + age_encoder.dim

    def __call__(
        self, previous_actions: th.Tensor, previous_rewards: th.Tensor | None, ages: th.Tensor, first: th.Tensor | None
    ) -> th.Tensor:
        """
        :param previous_actions: [..., action_dim]
        :param previous_rewards: [...]; None where they are not read
        :param ages: Steps since the episode began, [...]
        :param first: True where nothing is known of a step before, [...]; None for nowhere
        :return: [..., dim]
        """
        parts = []
        if self.reads_actions:
            parts.append(encode_actions(previous_actions, self.action_space))
        if self.reads_rewards:
            assert previous_rewards is not None
            parts.append(symlog(previous_rewards).unsqueeze(-1))
        if first is not None:
            parts = [part.masked_fill(first.unsqueeze(-1), 0.0) for part in parts]
        if self.age_encoder.dim > 0:
            parts.append(self.age_encoder(ages))
        if len(parts) == 1:
            return parts[0]
        return th.cat(parts, dim=-1) if parts else ages.new_zeros((*ages.shape, 0))


def stack_frames(features: th.Tensor, episode_ids: th.Tensor, n_previous: int, n_landmarks: int = 0) -> th.Tensor:
    """
    Frame stacking: the features of step t, and after them those of the steps t-n_previous, ..., t-1 of the same episode; zeros
    where there is no such step.

    :param features: [N, W, F]
    :param episode_ids: [N, W]
    :param n_previous: How many steps to look back
    :param n_landmarks: How many of the W steps, the first ones, have no neighbours
    :return: [N, W, F * (1 + n_previous)]; of the past each feature's side by side, oldest first
    """
    if n_previous == 0:
        return features
    if n_landmarks > 0:
        alone = F.pad(features[:, :n_landmarks], (0, n_previous * features.shape[-1]))
        return th.cat([alone, stack_frames(features[:, n_landmarks:], episode_ids[:, n_landmarks:], n_previous)], dim=1)
    earlier = F.pad(features, (0, 0, n_previous, 0)).unfold(1, n_previous, 1)[:, :-1]  # [N, W, F, n_previous]
    ids = F.pad(episode_ids, (n_previous, 0), value=-(2**62)).unfold(1, n_previous, 1)[:, :-1]  # [N, W, n_previous]
    same_episode = ids == episode_ids.unsqueeze(-1)
    return th.cat([features, th.where(same_episode.unsqueeze(2), earlier, 0.0).flatten(2)], dim=-1)
