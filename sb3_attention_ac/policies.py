"""Policies: SB3's interface to networks that attend to the trajectory."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_attention_ac.acting import Decision, MemoryActor, StatelessCalls, checked_episode_starts
from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.trajectory import TrajectoryWindows
from sb3_attention_ac.trajectory_policy import TrajectoryPolicy
from sb3_attention_ac.trunk import AttentionTrunk


class AttentionActorCriticPolicy(TrajectoryPolicy):
    """
    SB3's actor-critic policy whose critic attends to the trajectory.

    Called with plain observations (``predict_values``, ``evaluate_actions``, ``get_distribution``, ``forward``), each row is a
    trajectory of one step.

    :param args: As :class:`~sb3_attention_ac.trajectory_policy.TrajectoryPolicy`
    :param kwargs: Likewise
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.stateless_calls = StatelessCalls()

    # --- SB3's interface, on plain observations: each row a trajectory of one step -----------------------------------------

    def _single_steps(self, obs: PyTorchObs) -> tuple[Distribution, th.Tensor]:
        """The action distribution of each observation, and their values, [N, 1]"""
        windows = TrajectoryWindows.of_single_steps(self._batched(obs), get_action_dim(self.action_space))
        evaluated = self.window_latents(windows, 1)
        values, added = self.values_and_added(evaluated.critic)  # [N, 1]
        if added is not None and self.value_gate is not None:  # here SB3's critic learns, from single steps as in PPO
            values = super().predict_values(obs) + self.value_gate.share * added
        if evaluated.actor is None:
            latents, latent_pi, latent_sde = evaluated.critic.latents.squeeze(1), self.mlp_actor_latent(obs), None
        else:
            latents = latent_pi = evaluated.actor.latents.squeeze(1)
            latent_sde = evaluated.actor.mlp_latents.squeeze(1)
        tilt = self.tilt(latents, latent_pi)
        return self.action_distribution(latent_pi, None if tilt is None else tilt.offsets, latent_sde), values

    def _batched(self, obs: PyTorchObs) -> PyTorchObs:
        """Scalars of a Discrete space as [N, 1], as the buffer stores them"""
        if isinstance(self.observation_space, spaces.Discrete) and isinstance(obs, th.Tensor):
            return obs.reshape(-1, 1)
        if isinstance(self.observation_space, spaces.Dict) and isinstance(obs, dict):
            discrete = {k for k, space in self.observation_space.spaces.items() if isinstance(space, spaces.Discrete)}
            return {key: value.reshape(-1, 1) if key in discrete else value for key, value in obs.items()}
        return obs

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param obs: Observations
        :param deterministic: Whether to sample or use deterministic actions
        :return: actions, values [N, 1] and log probabilities of the actions [N]
        """
        distribution, values = self._single_steps(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        return actions.reshape((-1, *(self.action_space.shape or ()))), values, log_prob

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        :param obs: Observations
        :param actions: Actions
        :return: values [N, 1], log probabilities of the actions [N] and entropy of the action distributions [N]
        """
        distribution, values = self._single_steps(obs)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """
        :param obs: Observations
        :return: The action distribution of each
        """
        if self.remembers:
            return self._single_steps(obs)[0]
        return self.action_distribution(self.mlp_actor_latent(obs))

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: Observations
        :return: Their values, [N, 1]
        """
        return self._single_steps(obs)[1]

    # --- acting -----------------------------------------------------------------------------------------------------------

    @property
    def remembers(self) -> bool:
        """Whether acting needs a memory"""
        return self.memory_actor or self.tilts

    def acting_trunk(self) -> tuple[AttentionTrunk, nn.Sequential, BaseFeaturesExtractor]:
        """:return: The trunk that is stepped while acting, its MLP and its features extractor"""
        if self.memory_actor:
            return self.actor_trunk, self.mlp_extractor.policy_net, self.pi_features_extractor
        return self.critic_trunk, self.mlp_extractor.value_net, self.vf_features_extractor

    def start_acting(self, buffer: TrajectoryRolloutBuffer) -> Callable[[PyTorchObs, np.ndarray], Decision]:
        """
        Start a rollout. The critic's values are not asked for while it runs.

        :param buffer: Where the rollout goes; its context is what is remembered of the rollout before
        :return: A function from observations [N, *obs_shape] and episode starts [N] to sampled actions
        """
        if not self.remembers:
            latent_pi = self.mlp_actor_steps()
            return lambda obs, episode_starts: Decision(self.sample_actions(latent_pi(obs)))
        actor = MemoryActor(self, buffer.chunk_length)
        memory = actor.remember(buffer.context())
        return lambda obs, episode_starts: actor.act(obs, memory, episode_starts)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Get actions from observations, and for a memory actor the memory to pass to the next call.

        :param observation: One observation, or one per environment
        :param state: What the last call returned; None to start without a past
        :param episode_start: Whether each observation is the first of its episode; None for no
        :param deterministic: Whether or not to return deterministic actions
        :return: the actions and the next state (None for an MLP actor)
        """
        if not self.remembers:
            return super().predict(observation, state, episode_start, deterministic)
        self.set_training_mode(False)
        if isinstance(observation, tuple):  # as in SB3
            raise ValueError(
                "predict() was given a tuple instead of an array or a dictionary of arrays: reset() and step() of a Gym "
                "environment return one, with the observation first (obs, info = env.reset()); those of a VecEnv do not."
            )
        self.stateless_calls.note(state, episode_start)
        obs, vectorized_env = self.obs_to_tensor(observation)
        n_envs = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
        actor = MemoryActor(self)
        memory = actor.from_state(state, n_envs)
        actions = actor.act(obs, memory, checked_episode_starts(state, episode_start, n_envs), deterministic).actions
        env_actions = self.actions_for_env(actions.cpu().numpy())
        return env_actions if vectorized_env else env_actions.squeeze(axis=0), memory.to_numpy()


class AttentionActorCriticCnnPolicy(AttentionActorCriticPolicy):
    """As :class:`AttentionActorCriticPolicy`; the features extractor is SB3's ``NatureCNN`` (images) by default."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], *args: Any, **kwargs: Any):
        kwargs.setdefault("features_extractor_class", NatureCNN)
        super().__init__(observation_space, action_space, *args, **kwargs)


class AttentionActorCriticMultiInputPolicy(AttentionActorCriticPolicy):
    """As :class:`AttentionActorCriticPolicy`; the features extractor is SB3's ``CombinedExtractor`` (Dict) by default."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], *args: Any, **kwargs: Any):
        kwargs.setdefault("features_extractor_class", CombinedExtractor)
        super().__init__(observation_space, action_space, *args, **kwargs)
