"""
Action distributions as functions of logits or means: samples, log probabilities and entropies, with masks of allowed actions.

The formulas are those of SB3's distributions and contrib's ``MaskableCategorical``; no distribution object is made for a step,
which saves a tenth of a run's time, and validation does not depend on a setting of the whole process.
"""

import math
from typing import Any, Protocol

import numpy as np
import torch as th
import torch.nn.functional as F
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import make_masked_proba_distribution
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_attention_ac.networks.preprocessing import one_hot
from sb3_attention_ac.type_aliases import ActionParameters

MASKED_LOGIT = -1e8  # contrib's
KNOWN_DISTRIBUTIONS: tuple[type[Distribution], ...] = (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)


class ActionDistribution(Protocol):
    """What a policy asks of its action distribution."""

    def sample(self, given: ActionParameters, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor]:
        """
        :param given: Parameters of N distributions
        :param deterministic: Whether to return the mode
        :return: Actions [N, action_dim], and their log probabilities [N]
        """
        ...

    def log_prob_and_entropy(self, given: ActionParameters, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        """
        :param given: Parameters of N distributions
        :param actions: As the buffer stores them, [N, action_dim]
        :return: log probabilities of the actions [N] and entropies of the distributions [N], None without an analytical form
        """
        ...


class Categoricals:
    """
    One or more categorical distributions: Discrete, MultiDiscrete, and MultiBinary with the logits (0, l) for each bit.

    :param action_space: Discrete, MultiDiscrete or MultiBinary
    """

    def __init__(self, action_space: spaces.Space[Any]):
        self.is_binary = isinstance(action_space, spaces.MultiBinary)
        if isinstance(action_space, spaces.MultiDiscrete):
            sizes = [int(n) for n in action_space.nvec]
        elif isinstance(action_space, spaces.Discrete):
            sizes = [int(action_space.n)]
        else:
            sizes = [2] * int(spaces.flatdim(action_space))
        self.sizes, self.most, self.is_even = sizes, max(sizes), len(set(sizes)) == 1

    @property
    def mask_dim(self) -> int:
        """Width of a mask: one entry for each category of each distribution, as in contrib"""
        return sum(self.sizes)

    def grouped(self, parameters: th.Tensor) -> th.Tensor:
        """:return: [N, n_parameters] as [N, n_groups, most], padded with zeros; ``most`` is the size of the largest group"""
        if self.is_binary:
            parameters = _two_logits(parameters)
        return self._grouped(parameters, 0.0)

    def one_hot(self, actions: th.Tensor) -> th.Tensor:
        """:return: Actions [N, n_groups] as [N, n_groups, most]"""
        return one_hot(actions.unsqueeze(-1), self.most)

    def _grouped(self, flat: th.Tensor, fill: float | bool) -> th.Tensor:
        """:return: [N, sum of sizes] as [N, n_groups, most], filled up where groups have different sizes"""
        if self.is_even:
            return flat.reshape(*flat.shape[:-1], -1, self.most)
        parts = flat.split(self.sizes, dim=-1)
        return th.stack([F.pad(part, (0, self.most - part.shape[-1]), value=fill) for part in parts], dim=-2)

    def log_probs(self, given: ActionParameters) -> th.Tensor:
        """:return: log probability of each category, [N, n_groups, most]; about -1e8 for forbidden ones, -inf for padding"""
        logits = given.parameters
        if self.is_binary:
            logits = _two_logits(logits)
        if given.masks is not None:
            logits = th.where(given.masks, logits, MASKED_LOGIT)
        log_probs: th.Tensor = F.log_softmax(self._grouped(logits, -math.inf), dim=-1)
        return log_probs

    def sample(self, given: ActionParameters, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor]:
        """As :meth:`ActionDistribution.sample`; by the Gumbel-max trick"""
        log_probs = scores = self.log_probs(given)
        if not deterministic:
            scores = log_probs - th.empty_like(log_probs).exponential_().log()
        if given.masks is not None:  # exponential noise has no bound
            scores = scores.masked_fill(~self._grouped(given.masks, False), -math.inf)
        actions = scores.argmax(dim=-1)
        return actions, self._chosen(log_probs, actions)

    @staticmethod
    def _chosen(log_probs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """:return: log probability [N] of actions [N, n_groups]"""
        chosen = log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)  # [N, n_groups, 1] -> [N, n_groups]
        return chosen.squeeze(-1) if chosen.shape[-1] == 1 else chosen.sum(dim=-1)

    def log_prob_and_entropy(self, given: ActionParameters, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        """As :meth:`ActionDistribution.log_prob_and_entropy`"""
        log_probs = self.log_probs(given)
        terms = log_probs.exp() * log_probs.clamp(min=th.finfo(log_probs.dtype).min)  # 0 ln 0 = 0
        return self._chosen(log_probs, actions.long()), -terms.sum(dim=(-2, -1))

    def log_barrier(self, given: ActionParameters) -> th.Tensor:
        """:return: KL divergence from the uniform distribution over allowed actions to the policy's, [N]; infinite at p = 0"""
        log_probs = self.log_probs(given)
        allowed = log_probs > MASKED_LOGIT / 2  # neither forbidden nor padding
        n_allowed = allowed.sum(dim=-1)  # [N, n_groups]
        mean_log_probs = log_probs.masked_fill(~allowed, 0.0).sum(dim=-1) / n_allowed
        return (-mean_log_probs - n_allowed.log()).sum(dim=-1)


class DiagonalGaussian:
    """Independent normal distributions, for a Box."""

    def sample(self, given: ActionParameters, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor]:
        """As :meth:`ActionDistribution.sample`"""
        assert given.log_std is not None
        mean = given.parameters
        actions = mean if deterministic else mean + given.log_std.exp() * th.randn_like(mean)
        return actions, self.log_prob_and_entropy(given, actions)[0]

    def log_prob_and_entropy(self, given: ActionParameters, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        """As :meth:`ActionDistribution.log_prob_and_entropy`"""
        mean, log_std = given.parameters, given.log_std
        assert log_std is not None
        deviations = (actions - mean) * th.exp(-log_std)
        log_volume = (log_std + 0.5 * math.log(2 * math.pi)).expand_as(mean).sum(dim=-1)
        return -0.5 * deviations.square().sum(dim=-1) - log_volume, log_volume + 0.5 * mean.shape[-1]


class StateDependentNoise:
    """
    gSDE (Raffin et al. 2022, https://arxiv.org/abs/2005.05719): the noise is a function of the state and held for some steps.

    :param noise: SB3's distribution, which holds the current noise
    """

    def __init__(self, noise: StateDependentNoiseDistribution):
        self.noise = noise

    def sample(self, given: ActionParameters, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor]:
        """As :meth:`ActionDistribution.sample`"""
        assert given.latent_sde is not None
        actions = given.parameters if deterministic else given.parameters + self.noise.get_noise(given.latent_sde)
        squashed: th.Tensor = actions if self.noise.bijector is None else self.noise.bijector.forward(actions)
        return squashed, self.log_prob_and_entropy(given, squashed)[0]

    def log_prob_and_entropy(self, given: ActionParameters, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        """As :meth:`ActionDistribution.log_prob_and_entropy`"""
        assert given.log_std is not None and given.latent_sde is not None
        latent = given.latent_sde if self.noise.learn_features else given.latent_sde.detach()
        variance = (latent.square() @ self.noise.get_std(given.log_std).square()) + self.noise.epsilon
        gaussian = actions if self.noise.bijector is None else self.noise.bijector.inverse(actions)
        log_volume = 0.5 * (variance.log() + math.log(2 * math.pi)).sum(dim=-1)
        log_prob = -0.5 * ((gaussian - given.parameters).square() / variance).sum(dim=-1) - log_volume
        if self.noise.bijector is not None:
            return log_prob - self.noise.bijector.log_prob_correction(gaussian).sum(dim=-1), None
        return log_prob, log_volume + 0.5 * variance.shape[-1]


def make_action_distribution(action_space: spaces.Space[Any], distribution: Distribution) -> ActionDistribution:
    """
    :param action_space: The action space
    :param distribution: SB3's distribution for it, or a subclass with a method ``as_functions``
    :return: The same as functions
    :raises TypeError: If it is another one: it would not be called
    """
    if hasattr(distribution, "as_functions"):
        own: ActionDistribution = distribution.as_functions()
        return own
    if type(distribution) not in KNOWN_DISTRIBUTIONS:
        raise TypeError(
            f"The policy's action_dist is {type(distribution).__name__}, which would not be used: sampling and learning "
            "use functions of whole windows. Leave it as it is, or give it a method as_functions() that returns an object "
            "with sample() and log_prob_and_entropy() (docs/architecture.md)."
        )
    if isinstance(distribution, StateDependentNoiseDistribution):
        return StateDependentNoise(distribution)
    return DiagonalGaussian() if isinstance(action_space, spaces.Box) else Categoricals(action_space)


def _two_logits(logits: th.Tensor) -> th.Tensor:
    """:return: The logit of each bit as those of two categories, [N, n] -> [N, 2 n], as contrib has them; that of 0 is 0"""
    return F.pad(logits.unsqueeze(-1), (1, 0)).flatten(-2)


def as_sb3_distribution(given: ActionParameters, distribution: Distribution, action_space: spaces.Space[Any]) -> Distribution:
    """
    :param given: Parameters of N distributions
    :param distribution: SB3's distribution for the action space, which is given the parameters
    :param action_space: The action space
    :return: That distribution, or contrib's maskable one with masks
    """
    made: Any = distribution
    if isinstance(distribution, StateDependentNoiseDistribution):
        made = made.proba_distribution(given.parameters, given.log_std, given.latent_sde)
    elif given.masks is None:
        made = made.proba_distribution(*[part for part in (given.parameters, given.log_std) if part is not None])
    else:
        is_binary = isinstance(action_space, spaces.MultiBinary)
        made = make_masked_proba_distribution(action_space)
        made.proba_distribution(_two_logits(given.parameters) if is_binary else given.parameters).apply_masking(given.masks)
    result: Distribution = made
    return result


def forbids_actions(env: GymEnv) -> bool:
    """
    :param env: Parallel environments, or a single one
    :return: Whether they provide action masks: a method; with continuous actions, one of that name is something else
    """
    if isinstance(env.action_space, spaces.Box):
        return False
    try:
        if not is_masking_supported(env):
            return False
        if isinstance(env, VecEnv) and isinstance(env.unwrapped, SubprocVecEnv):  # a method need not pass between processes
            return True
        methods = env.get_attr("action_masks") if isinstance(env, VecEnv) else [env.get_wrapper_attr("action_masks")]
        return all(map(callable, methods))
    except Exception:  # vectorized environments of other libraries do not know the question, in many ways
        return False


def check_masks(masks: object, distribution: ActionDistribution, n: int, device: th.device) -> th.Tensor:
    """
    :param masks: True (or 1) where an action is allowed, [n, mask_dim] or any shape with as many entries
    :param distribution: The action distribution
    :param n: Number of observations
    :param device: Where to put them
    :return: [n, mask_dim]
    :raises ValueError: If they have another size, or allow nothing, or the action space knows no masks
    """
    if not isinstance(distribution, Categoricals):
        raise ValueError("Action masks are for Discrete, MultiDiscrete and MultiBinary actions, but this policy's are a Box.")
    allowed = (
        masks.to(device, th.bool) if isinstance(masks, th.Tensor) else th.as_tensor(np.asarray(masks, bool), device=device)
    )
    if allowed.numel() != n * distribution.mask_dim:
        raise ValueError(
            f"action_masks has shape {tuple(allowed.shape)}, but {n} observation(s) with {distribution.mask_dim} possible "
            f"actions need ({n}, {distribution.mask_dim}): one entry for each action, True where it is allowed."
        )
    allowed = allowed.reshape(n, distribution.mask_dim)
    possible = distribution._grouped(allowed, False).any(dim=-1)  # [n, n_groups]
    if not possible.all():
        row = int((~possible.all(dim=-1)).nonzero()[0])
        raise ValueError(
            f"The action mask of environment {row} allows no action: allow at least one in each action dimension."
        )
    return allowed
