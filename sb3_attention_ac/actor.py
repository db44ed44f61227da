"""The actor without a memory, and what every actor does with its latents: distributions, samples, actions for the env."""

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_attention_ac.distributions import (
    categorical_log_prob_and_entropy,
    gaussian_log_prob_and_entropy,
    sample_categorical,
    sample_gaussian,
    sample_gsde,
    without_validation,
)
from sb3_attention_ac.stand_in import as_function


class ActorPolicy(ActorCriticPolicy):
    """
    SB3's MLP actor. Where ``offsets`` are taken, they are added to the distribution's parameters (logits or means) as
    :class:`~sb3_attention_ac.attention_q.AttentionQ` gives them; None, or a width of zero, for no change. Where ``latent_sde``
    is taken, gSDE makes its noise of it; None for ``latent_pi``, as in SB3. A memory actor gives what its MLP says alone: the
    variance of the noise grows with the square of these latents, and what attention adds has no bounds.
    """

    def features(self, obs: PyTorchObs, extractor: BaseFeaturesExtractor) -> th.Tensor:
        """:return: Features of each observation, [N, features_dim]"""
        # ActorCriticPolicy.extract_features() returns pairs; BasePolicy's takes one extractor
        features: Any = super(ActorCriticPolicy, self).extract_features(obs, extractor)
        return cast(th.Tensor, features)

    def mlp_actor_latent(self, obs: PyTorchObs) -> th.Tensor:
        """:return: SB3's actor latent of each observation, [N, latent_dim_pi]"""
        return self.mlp_extractor.forward_actor(self.features(obs, self.pi_features_extractor))

    def mlp_actor_steps(self) -> Callable[[PyTorchObs], th.Tensor]:
        """:return: :meth:`mlp_actor_latent` for steps of few environments (:mod:`~sb3_attention_ac.stand_in`)"""
        mlp_extractor = self.mlp_extractor
        is_own = type(mlp_extractor) is not MlpExtractor or "forward_actor" in vars(mlp_extractor)
        is_own |= type(self).mlp_actor_latent is not ActorPolicy.mlp_actor_latent or "mlp_actor_latent" in vars(self)
        if is_own:
            return self.mlp_actor_latent
        mlp, extractor = as_function(mlp_extractor.policy_net), self.pi_features_extractor
        return lambda obs: mlp(self.features(obs, extractor))

    def action_parameters(self, latent_pi: th.Tensor, offsets: th.Tensor | None = None) -> th.Tensor:
        """
        :param latent_pi: [N, latent_dim_pi]
        :param offsets: What to add, [N, n_parameters]
        :return: Logits, or means of a Box, [N, n_parameters]
        """
        parameters: th.Tensor = self.action_net(latent_pi)
        return parameters if offsets is None or offsets.shape[-1] == 0 else parameters + offsets

    def action_distribution(
        self, latent_pi: th.Tensor, offsets: th.Tensor | None = None, latent_sde: th.Tensor | None = None
    ) -> Distribution:
        """
        :param latent_pi: [N, latent_dim_pi]
        :param offsets: What to add to its parameters, [N, n_parameters]
        :param latent_sde: What gSDE makes noise of, [N, latent_dim_pi]
        :return: The distribution of actions
        """
        if latent_sde is not None and isinstance(self.action_dist, StateDependentNoiseDistribution):
            return self.action_dist.proba_distribution(self.action_net(latent_pi), self.log_std, latent_sde)
        if offsets is None or offsets.shape[-1] == 0:
            return self._get_action_dist_from_latent(latent_pi)
        make: Any = self.action_dist.proba_distribution
        parameters = self.action_parameters(latent_pi, offsets)
        distribution = make(parameters, self.log_std) if isinstance(self.action_space, spaces.Box) else make(parameters)
        return cast(Distribution, distribution)

    def _common_distribution(self) -> type[Distribution] | None:
        """:return: Which of SB3's distributions actions follow; None for a policy with one of its own"""
        is_own = type(self)._get_action_dist_from_latent is not ActorCriticPolicy._get_action_dist_from_latent
        return None if is_own else type(self.action_dist)

    def log_prob_and_entropy(
        self,
        latent_pi: th.Tensor,
        actions: th.Tensor,
        offsets: th.Tensor | None = None,
        latent_sde: th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """
        :param latent_pi: [N, latent_dim_pi]
        :param actions: As the buffer stores them, [N, action_dim]
        :param offsets: What was added to the distribution's parameters, [N, n_parameters]
        :param latent_sde: What gSDE makes noise of, [N, latent_dim_pi]
        :return: log probabilities of the actions [N] and entropy of the distributions [N]
        """
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        kind = self._common_distribution()
        if kind is CategoricalDistribution:
            return categorical_log_prob_and_entropy(self.action_parameters(latent_pi, offsets), actions)
        if kind is DiagGaussianDistribution:
            return gaussian_log_prob_and_entropy(self.action_parameters(latent_pi, offsets), self.log_std, actions)
        with without_validation():
            distribution = self.action_distribution(latent_pi, offsets, latent_sde)
            return distribution.log_prob(actions), distribution.entropy()

    def evaluate_actor(
        self, obs: PyTorchObs, actions: th.Tensor, offsets: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """
        The MLP actor alone.

        :param obs: Observations, [N, *obs_shape]
        :param actions: As the buffer stores them, [N, action_dim]
        :param offsets: What was added to the distribution's parameters, [N, n_parameters]
        :return: log probabilities of the actions [N] and entropy of the action distributions [N]
        """
        return self.log_prob_and_entropy(self.mlp_actor_latent(obs), actions, offsets)

    def evaluate_transitions(
        self, obs: PyTorchObs, actions: th.Tensor, offsets: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        The MLP actor and the MLP critic, as in SB3.

        :param obs: Observations, [N, *obs_shape]
        :param actions: As the buffer stores them, [N, action_dim]
        :param offsets: What was added to the distribution's parameters, [N, n_parameters]
        :return: V_mlp(s) [N], log probabilities of the actions [N] and entropy of the action distributions [N]
        """
        features = vf_features = self.features(obs, self.pi_features_extractor)
        if not self.share_features_extractor:
            vf_features = self.features(obs, self.vf_features_extractor)
        values: th.Tensor = self.value_net(self.mlp_extractor.forward_critic(vf_features)).squeeze(-1)
        return values, *self.log_prob_and_entropy(self.mlp_extractor.forward_actor(features), actions, offsets)

    def sample_actions(
        self,
        latent_pi: th.Tensor,
        deterministic: bool = False,
        offsets: th.Tensor | None = None,
        latent_sde: th.Tensor | None = None,
    ) -> th.Tensor:
        """
        :param latent_pi: [N, latent_dim_pi]
        :param deterministic: Whether to sample or use deterministic actions
        :param offsets: What to add to the distribution's parameters, [N, n_parameters]
        :param latent_sde: What gSDE makes noise of, [N, latent_dim_pi]
        :return: Actions, not yet clipped or unscaled, [N, *action_shape]
        :raises ValueError: If there is NaN or infinity in ``latent_pi``: the actions would look valid, a memory would keep it
        """
        if not math.isfinite(latent_pi.detach().sum()):
            raise ValueError(
                "The actor's latents are not finite: check the observations for NaN or infinity (VecCheckNan of "
                "Stable-Baselines3 tells where they come from)."
            )
        kind = None if deterministic else self._common_distribution()
        if kind is CategoricalDistribution:
            actions = sample_categorical(self.action_parameters(latent_pi, offsets))
        elif kind is DiagGaussianDistribution:
            actions = sample_gaussian(self.action_parameters(latent_pi, offsets), self.log_std)
        elif isinstance(self.action_dist, StateDependentNoiseDistribution) and kind is StateDependentNoiseDistribution:
            latent_sde = latent_pi if latent_sde is None else latent_sde
            actions = sample_gsde(self.action_dist, self.action_parameters(latent_pi, offsets), latent_sde)
        else:
            with without_validation():
                actions = self.action_distribution(latent_pi, offsets, latent_sde).get_actions(deterministic=deterministic)
        return actions.reshape((-1, *(self.action_space.shape or ())))

    def actions_for_env(self, actions: np.ndarray) -> np.ndarray:
        """
        :param actions: As sampled from the distribution
        :return: As the environment takes them: unscaled (gSDE with ``squash_output``) or clipped to the bounds of a Box
        """
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.squash_output:
            return self.unscale_action(actions)
        clipped: np.ndarray = np.clip(actions, self.action_space.low, self.action_space.high)
        return clipped
