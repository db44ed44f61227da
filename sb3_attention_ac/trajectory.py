"""
Trajectories as dense tensors: time-aligned windows.

A *memory* is one stored step (s_t, a_t, r_t, s_{t+1}); a *trajectory* is the sequence of memories of one episode. A *window*
is a stretch of consecutive steps of one environment. It may hold the end of one episode and the start of the next: attention
inside a window is limited to the steps of one episode, so that short episodes are packed without padding.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, NamedTuple, TypeVar

import torch as th
import torch.nn.functional as F
from gymnasium import spaces

Obs = th.Tensor | dict[str, th.Tensor]
ArrayT = TypeVar("ArrayT")


def map_obs(function: Callable[..., Any], *observations: Any) -> Any:
    """
    Apply a function to an observation, or to each entry of a Dict observation.

    :param function: Takes one array (or tensor) per observation given
    :param observations: Arrays (or tensors), or dictionaries of them, all of the same structure
    :return: The results, in the same structure
    """
    if isinstance(observations[0], dict):
        return {key: function(*(obs[key] for obs in observations)) for key in observations[0]}
    return function(*observations)


def split_batch(batch: Any, size: int) -> list[Any]:
    """
    Cut a batch into minibatches, without copying.

    :param batch: A tensor, or a dictionary or NamedTuple of batches, all with the same first axis
    :param size: Length of a minibatch; the last one may be shorter
    :return: Minibatches of the same structure
    """
    if isinstance(batch, th.Tensor):
        return list(batch.split(int(size)))  # an integer of NumPy is none of PyTorch's
    if isinstance(batch, dict):
        parts = zip(*(split_batch(value, size) for value in batch.values()), strict=True)
        return [dict(zip(batch, part, strict=True)) for part in parts]
    return [type(batch)(*part) for part in zip(*(split_batch(value, size) for value in batch), strict=True)]


class TrajectoryWindows(NamedTuple):
    """
    A batch of N windows of W consecutive steps each. What it holds at position t is known *before* action a_t is taken.

    :param observations: s_t, [N, W, *obs_shape]
    :param previous_actions: a_{t-1}, [N, W, action_dim], meaningless at the first step of an episode
    :param previous_rewards: r_{t-1}, [N, W], meaningless at the first step of an episode
    :param episode_starts: True at the first step of an episode, [N, W]
    :param episode_ids: A number that two steps share if and only if they belong to the same episode, [N, W]
    """

    observations: Obs
    previous_actions: th.Tensor
    previous_rewards: th.Tensor
    episode_starts: th.Tensor
    episode_ids: th.Tensor

    @classmethod
    def of_single_steps(cls, observations: Obs, action_dim: int) -> "TrajectoryWindows":
        """
        Each row of a plain batch of observations as a trajectory of one step, without a past.

        :param observations: [N, *obs_shape]
        :param action_dim: Number of action dimensions in the buffer
        :return: Windows of length 1
        """
        observations = map_obs(lambda obs: obs.unsqueeze(1), observations)  # [N, 1, *obs_shape]
        first = next(iter(observations.values())) if isinstance(observations, dict) else observations
        n, device = first.shape[0], first.device
        return cls(
            observations,
            th.zeros((n, 1, action_dim), device=device),
            th.zeros((n, 1), device=device),
            th.ones((n, 1), dtype=th.bool, device=device),
            th.zeros((n, 1), dtype=th.long, device=device),
        )

    def flat_observations(self) -> Obs:
        """:return: The observations as a plain batch, [N * W, *obs_shape]"""
        flat: Obs = map_obs(lambda obs: obs.flatten(0, 1), self.observations)
        return flat


def kept(function: Callable[..., th.Tensor]) -> Callable[..., th.Tensor]:
    """
    :param function: Makes a tensor that depends on its arguments alone
    :return: The same, but the latest tensors are kept, whatever mode they are made in: in inference mode they could not be
        learned with later, and what is made while compiling is none
    """
    cached = lru_cache(maxsize=8)(th.inference_mode(False)(function))

    @wraps(function)
    def get(*arguments: Any) -> th.Tensor:
        return function(*arguments) if th.compiler.is_compiling() else cached(*arguments)

    return get


@kept
def _not_later(n_queries: int, width: int, device: th.device) -> th.Tensor:
    """:return: Whether a step is not later than that of the last ``n_queries`` which asks, [n_queries, width]"""
    return th.ones((n_queries, width), dtype=th.bool, device=device).tril(width - n_queries)


def attention_mask(episode_ids: th.Tensor, n_queries: int, causal: bool = True) -> th.Tensor:
    """
    Which steps the last ``n_queries`` steps of each window may attend to: those of the same episode and, if causal, not later
    ones. A step always sees itself, so that no row of the mask is empty.

    :param episode_ids: [N, W]
    :param n_queries: How many of the last steps ask
    :param causal: False to see the whole episode (never for values: the future depends on the action being judged)
    :return: True where attention is allowed, [N, 1, n_queries, W]
    """
    width = episode_ids.shape[1]
    mask = episode_ids[:, -n_queries:, None] == episode_ids[:, None, :]  # [N, n_queries, W]
    if causal:
        mask = mask & _not_later(n_queries, width, episode_ids.device)
    return mask.unsqueeze(1)


def local_window(features: th.Tensor, episode_ids: th.Tensor, n_previous: int) -> th.Tensor:
    """
    The features of step t, and after them those of the steps t-n_previous, ..., t-1 of the same episode; zeros where there is
    no such step.

    :param features: [N, W, F]
    :param episode_ids: [N, W]
    :param n_previous: How many steps to look back
    :return: [N, W, F * (1 + n_previous)]; of the past each feature's side by side, oldest first
    """
    if n_previous == 0:
        return features
    earlier = F.pad(features, (0, 0, n_previous, 0)).unfold(1, n_previous, 1)[:, :-1]  # [N, W, F, n_previous]
    ids = F.pad(episode_ids, (n_previous, 0), value=-(2**62)).unfold(1, n_previous, 1)[:, :-1]  # [N, W, n_previous]
    same_episode = ids == episode_ids.unsqueeze(-1)
    return th.cat([features, th.where(same_episode.unsqueeze(2), earlier, 0.0).flatten(2)], dim=-1)


def action_encoding_dim(action_space: spaces.Space[Any]) -> int:
    """
    :param action_space: Box, Discrete, MultiDiscrete or MultiBinary
    :return: The width of :func:`encode_actions`
    """
    if isinstance(action_space, spaces.Discrete):
        return int(action_space.n)
    if isinstance(action_space, spaces.MultiDiscrete):
        return int(action_space.nvec.sum())
    return int(spaces.flatdim(action_space))


def encode_actions(actions: th.Tensor, action_space: spaces.Space[Any]) -> th.Tensor:
    """
    Actions as network input: one-hot for discrete actions, squashed for continuous ones.

    :param actions: As stored in the buffer (before clipping to the bounds of a Box), [..., action_dim]
    :param action_space: Box, Discrete, MultiDiscrete or MultiBinary
    :return: [..., action_encoding_dim]
    """
    if isinstance(action_space, spaces.Discrete):
        return one_hot(actions, int(action_space.n))
    if isinstance(action_space, spaces.MultiDiscrete):
        parts = zip(actions.split(1, dim=-1), action_space.nvec, strict=True)
        return th.cat([one_hot(part, int(n)) for part, n in parts], dim=-1)
    if isinstance(action_space, spaces.MultiBinary):
        return actions.float()
    return symlog(actions.float())


def one_hot(actions: th.Tensor, n: int) -> th.Tensor:
    """
    :param actions: Categories, [..., 1]
    :param n: How many there are
    :return: [..., n]; quicker than PyTorch's, which looks at all of them first
    """
    return (actions == th.arange(n, device=actions.device)).float()


def symlog(x: th.Tensor) -> th.Tensor:
    """Squash any scale, keeping the sign: sign(x) ln(1 + abs(x)) (Hafner et al. 2023, https://arxiv.org/abs/2301.04104)."""
    return th.sign(x) * th.log1p(th.abs(x))
