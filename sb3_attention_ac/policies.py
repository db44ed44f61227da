"""Policies: SB3's actor-critic policies with a critic, and if wanted an actor, that attends to the trajectory."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_attention_ac.acting import MemoryActor, StatelessCalls
from sb3_attention_ac.auxiliary import MaskedPrediction
from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.checks import check_network
from sb3_attention_ac.distributions import sample_categorical, sample_gaussian, without_validation
from sb3_attention_ac.encoder import TrajectoryEncoder
from sb3_attention_ac.live import LivePrediction
from sb3_attention_ac.parameter_groups import actor_and_critic
from sb3_attention_ac.trajectory import TrajectoryWindows, action_encoding_dim, encode_actions, symlog
from sb3_attention_ac.trunk import AttentionTrunk


class WindowEvaluation(NamedTuple):
    """
    What actor and critic say of the last n steps of N windows. An MLP actor is evaluated on single transitions instead.

    :param values: V(s_t), [N, n]
    :param latents: The critic's latents, [N, n, latent_dim_vf]
    :param log_prob: log pi(a_t | s_t), [N, n]; None for an MLP actor
    :param entropy: Entropy of the action distributions, [N, n]; None for an MLP actor, or if it has no analytical form
    """

    values: th.Tensor
    latents: th.Tensor
    log_prob: th.Tensor | None = None
    entropy: th.Tensor | None = None


class AttentionActorCriticPolicy(ActorCriticPolicy):
    """
    SB3's actor-critic policy whose critic attends to the trajectory. At initialisation the critic is SB3's MLP critic: what
    the local window and the attention add is learned, starting at zero. The actor is SB3's MLP actor, or with ``memory_actor``
    it attends to the trajectory as well.

    Called with plain observations (``predict_values``, ``evaluate_actions``, ``get_distribution``, ``forward``), each row is a
    trajectory of one step.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param net_arch: The specification of the policy and value networks
    :param activation_fn: Activation function of these networks
    :param ortho_init: Whether to use or not orthogonal initialization
    :param use_sde: Whether to use State Dependent Exploration or not
    :param log_std_init: Initial value for the log standard deviation
    :param full_std: Whether to use (n_features x n_actions) parameters for the std instead of only (n_features,) with gSDE
    :param use_expln: Use ``expln()`` function instead of ``exp()`` to ensure a positive standard deviation (gSDE)
    :param squash_output: Whether to squash the output using a tanh function (gSDE)
    :param features_extractor_class: Features extractor to use
    :param features_extractor_kwargs: Keyword arguments to pass to the features extractor
    :param share_features_extractor: If True, the features extractor is shared between the policy and value networks
    :param normalize_images: Whether to normalize images or not, dividing by 255.0 (True by default)
    :param optimizer_class: The optimizer to use, ``th.optim.Adam`` by default
    :param optimizer_kwargs: Additional keyword arguments, excluding the learning rate, to pass to the optimizer
    :param context_length: How many steps of its episode a step sees at least, if there are that many, at least 1; at
        most three times as many, less one (twice as many with ``memory_actor``)
    :param d_model: Width of a token, a multiple of ``n_heads``
    :param n_layers: Number of transformer blocks, 0 for no attention (the critic is an MLP with a local window)
    :param n_heads: Number of attention heads
    :param dim_feedforward: Width of the feed-forward part of a block, None for ``2 * d_model``
    :param dropout: Dropout probability in the encoder, in [0, 1)
    :param local_window: How many of the last steps feed the MLP's first layer directly, 1 for the current one alone
    :param memory_actor: Whether the actor attends to the trajectory too
    :param share_encoder: With ``memory_actor``, one encoder for actor and critic instead of two
    :param aux_targets: What is predicted, see :class:`~sb3_attention_ac.auxiliary.MaskedPrediction`; "live" for
        :class:`~sb3_attention_ac.live.LivePrediction`
    :param temperature: Temperature of the contrastive loss
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        ortho_init: bool = True,
        use_sde: bool = False,
        log_std_init: float = 0.0,
        full_std: bool = True,
        use_expln: bool = False,
        squash_output: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = True,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        context_length: int = 32,
        d_model: int = 64,
        n_layers: int = 1,
        n_heads: int = 4,
        dim_feedforward: int | None = None,
        dropout: float = 0.0,
        local_window: int = 4,
        memory_actor: bool = False,
        share_encoder: bool = False,
        aux_targets: tuple[str, ...] = (),
        temperature: float = 0.1,
    ):
        check_network(context_length, d_model, n_layers, n_heads, dim_feedforward, dropout, local_window, memory_actor)
        if optimizer_kwargs is None and optimizer_class is th.optim.Adam:
            # SB3's epsilon; the fused step does the same arithmetic in one kernel
            optimizer_kwargs = {"eps": 1e-5, "fused": True}
        self.context_length = context_length
        self.d_model = d_model
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.dim_feedforward = dim_feedforward
        self.dropout = dropout
        self.local_window = local_window
        self.memory_actor = memory_actor
        self.share_encoder = share_encoder
        self.aux_targets = tuple(aux_targets)
        self.temperature = temperature
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=net_arch,
            activation_fn=activation_fn,
            ortho_init=ortho_init,
            use_sde=use_sde,
            log_std_init=log_std_init,
            full_std=full_std,
            use_expln=use_expln,
            squash_output=squash_output,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            share_features_extractor=share_features_extractor,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        self.stateless_calls = StatelessCalls()

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        names = "share_features_extractor context_length d_model n_layers n_heads dim_feedforward dropout local_window"
        names += " memory_actor share_encoder aux_targets temperature"
        data.update({name: getattr(self, name) for name in names.split()})
        return data

    # --- construction ---------------------------------------------------------------------------------------------------

    @property
    def n_context(self) -> int:
        """How many steps before a chunk its windows need: the context of the attention, or of the local window alone."""
        return self.context_length if self.n_layers > 0 else self.local_window - 1

    @property
    def chunk_length(self) -> int:
        """How many consecutive steps follow this context in a window: more for a critic alone, so that less is overlap."""
        return self.context_length if self.memory_actor else 2 * self.context_length

    def _make_encoder(self, latent_dim: int, event_dim: int) -> TrajectoryEncoder | None:
        if self.n_layers == 0:
            return None
        dim_feedforward = self.dim_feedforward or 2 * self.d_model
        return TrajectoryEncoder(
            latent_dim, event_dim, self.d_model, self.n_layers, self.n_heads, dim_feedforward, self.dropout
        )

    def _build_mlp_extractor(self) -> None:
        """Create SB3's policy and value networks, and the trunks and heads that go with them."""
        super()._build_mlp_extractor()
        mlp, action_dim = self.mlp_extractor, action_encoding_dim(self.action_space)
        gathered_dim = self.d_model if self.n_layers > 0 else 0
        shared = self.memory_actor and self.share_encoder
        if self.memory_actor:
            encoder = self._make_encoder(mlp.latent_dim_pi, action_dim)
            self.actor_trunk = AttentionTrunk(
                mlp.policy_net, self.features_dim, mlp.latent_dim_pi, self.local_window, encoder, gathered_dim
            )
        encoder = None if shared else self._make_encoder(mlp.latent_dim_vf, action_dim + 1)
        self.critic_trunk = AttentionTrunk(
            mlp.value_net, self.features_dim, mlp.latent_dim_vf, self.local_window, encoder, gathered_dim
        )
        self.auxiliary = self.live = None
        if "live" in self.aux_targets:
            self.live = LivePrediction(mlp.latent_dim_vf, action_dim, self.features_dim)
        masked_targets = tuple(target for target in self.aux_targets if target != "live")
        if masked_targets:
            self.auxiliary = MaskedPrediction(
                masked_targets,
                self.d_model,
                self.vf_features_extractor,
                mlp.policy_net if shared else mlp.value_net,
                mlp.latent_dim_pi if shared else mlp.latent_dim_vf,
                action_dim,
                self.temperature,
            )

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        if not self.memory_actor:
            groups: Any = actor_and_critic(self)
            optimizer_class: Any = self.optimizer_class
            self.optimizer = optimizer_class(groups, lr=lr_schedule(1), **self.optimizer_kwargs)
        if self.auxiliary is not None:
            self.auxiliary.update_key_encoder(self, 1.0)

    # --- one pass over windows ------------------------------------------------------------------------------------------

    def window_features(self, windows: TrajectoryWindows, extractor: BaseFeaturesExtractor) -> th.Tensor:
        """:return: Features of every step, [N, W, features_dim]"""
        features: Any = super(ActorCriticPolicy, self).extract_features(windows.flat_observations(), extractor)
        shape = windows.episode_ids.shape
        return cast(th.Tensor, features.reshape(*shape, -1))  # [N * W, F] -> [N, W, F]

    def encode_events(self, actions: th.Tensor, episode_starts: th.Tensor, rewards: th.Tensor | None = None) -> th.Tensor:
        """
        What happened just before each step; zeros at the first step of an episode.

        :param actions: Previous actions, [..., action_dim]
        :param episode_starts: [...]
        :param rewards: Previous rewards [...], for the critic only: ``predict`` has none to give
        :return: [..., event_dim]
        """
        events = encode_actions(actions, self.action_space)
        if rewards is not None:
            events = th.cat([events, symlog(rewards).unsqueeze(-1)], dim=-1)
        return events * ~episode_starts.unsqueeze(-1)

    def window_latents(
        self, windows: TrajectoryWindows, n_queries: int
    ) -> tuple[th.Tensor | None, th.Tensor, th.Tensor | None]:
        """
        The causal latents of the last steps of each window.

        :param windows: N windows
        :param n_queries: How many of their last steps to return
        :return: latents of the memory actor (None for an MLP actor) [N, n_queries, latent_dim_pi], latents of the critic
            [N, n_queries, latent_dim_vf], and what the critic's encoder gathered [N, n_queries, d_model]
        """
        vf_features = self.window_features(windows, self.vf_features_extractor)
        latent_pi = gathered = None
        if self.memory_actor:
            shared = self.share_features_extractor
            pi_features = vf_features if shared else self.window_features(windows, self.pi_features_extractor)
            events = self.encode_events(windows.previous_actions, windows.episode_starts)
            latent_pi, gathered = self.actor_trunk(
                self.mlp_extractor.policy_net, pi_features, events, windows.episode_ids, n_queries
            )
            if not self.share_encoder:
                gathered = None
        events = self.encode_events(windows.previous_actions, windows.episode_starts, windows.previous_rewards)
        latent_vf, gathered = self.critic_trunk(
            self.mlp_extractor.value_net, vf_features, events, windows.episode_ids, n_queries, gathered
        )
        return latent_pi, latent_vf, gathered

    def evaluate_windows(self, windows: TrajectoryWindows, actions: th.Tensor) -> WindowEvaluation:
        """
        Values of the last steps of each window, and for a memory actor the log probabilities of their actions.

        :param windows: N windows
        :param actions: Actions of their last n steps, [N, n, action_dim]
        :return: What actor and critic say of these steps
        """
        latent_pi, latent_vf, _ = self.window_latents(windows, actions.shape[1])
        values = self.value_net(latent_vf).squeeze(-1)
        if latent_pi is None:
            return WindowEvaluation(values, latent_vf)
        log_prob, entropy = self._log_prob_and_entropy(latent_pi.flatten(0, 1), actions.flatten(0, 1))
        shape = values.shape  # [N, n]
        entropy = None if entropy is None else entropy.reshape(shape)
        return WindowEvaluation(values, latent_vf, log_prob.reshape(shape), entropy)

    def _log_prob_and_entropy(self, latent_pi: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        """:param actions: [N, action_dim], as the buffer stores them"""
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        with without_validation():
            distribution = self._get_action_dist_from_latent(latent_pi)
            return distribution.log_prob(actions), distribution.entropy()

    # --- SB3's interface, on plain observations: each row a trajectory of one step -----------------------------------------

    def _single_latents(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        windows = TrajectoryWindows.of_single_steps(self._batched(obs), get_action_dim(self.action_space))
        latent_pi, latent_vf, _ = self.window_latents(windows, 1)
        if latent_pi is None:
            return self.mlp_actor_latent(obs), latent_vf.squeeze(1)
        return latent_pi.squeeze(1), latent_vf.squeeze(1)

    def _batched(self, obs: PyTorchObs) -> PyTorchObs:
        """Scalars of a Discrete space as [N, 1], as the buffer stores them"""
        if isinstance(self.observation_space, spaces.Discrete) and isinstance(obs, th.Tensor):
            return obs.reshape(-1, 1)
        if isinstance(self.observation_space, spaces.Dict) and isinstance(obs, dict):
            discrete = {k for k, space in self.observation_space.spaces.items() if isinstance(space, spaces.Discrete)}
            return {key: value.reshape(-1, 1) if key in discrete else value for key, value in obs.items()}
        return obs

    def actor_features(self, obs: PyTorchObs) -> th.Tensor:
        """:return: The actor's features of each observation, [N, features_dim]"""
        # ActorCriticPolicy.extract_features() returns pairs; BasePolicy's takes one extractor
        features: Any = super(ActorCriticPolicy, self).extract_features(obs, self.pi_features_extractor)
        return cast(th.Tensor, features)

    def mlp_actor_latent(self, obs: PyTorchObs) -> th.Tensor:
        """:return: SB3's actor latent of each observation, [N, latent_dim_pi]"""
        return self.mlp_extractor.forward_actor(self.actor_features(obs))

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param obs: Observations
        :param deterministic: Whether to sample or use deterministic actions
        :return: actions, values [N, 1] and log probabilities of the actions [N]
        """
        latent_pi, latent_vf = self._single_latents(obs)
        distribution = self._get_action_dist_from_latent(latent_pi)
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        return actions.reshape((-1, *(self.action_space.shape or ()))), self.value_net(latent_vf), log_prob

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        :param obs: Observations
        :param actions: Actions
        :return: values [N, 1], log probabilities of the actions [N] and entropy of the action distributions [N]
        """
        latent_pi, latent_vf = self._single_latents(obs)
        distribution = self._get_action_dist_from_latent(latent_pi)
        return self.value_net(latent_vf), distribution.log_prob(actions), distribution.entropy()

    def evaluate_actor(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        """
        The MLP actor alone.

        :param obs: Observations, [N, *obs_shape]
        :param actions: As the buffer stores them, [N, action_dim]
        :return: log probabilities of the actions [N] and entropy of the action distributions [N]
        """
        return self._log_prob_and_entropy(self.mlp_actor_latent(obs), actions)

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """
        :param obs: Observations
        :return: The action distribution of each
        """
        latent_pi = self._single_latents(obs)[0] if self.memory_actor else self.mlp_actor_latent(obs)
        return self._get_action_dist_from_latent(latent_pi)

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: Observations
        :return: Their values, [N, 1]
        """
        values: th.Tensor = self.value_net(self._single_latents(obs)[1])
        return values

    def encoder_trunk(self) -> tuple[AttentionTrunk, nn.Sequential]:
        """:return: The trunk whose encoder the critic reads, and its MLP"""
        if self.memory_actor and self.share_encoder:
            return self.actor_trunk, self.mlp_extractor.policy_net
        return self.critic_trunk, self.mlp_extractor.value_net

    # --- acting -----------------------------------------------------------------------------------------------------------

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

    def start_acting(self, buffer: TrajectoryRolloutBuffer) -> Callable[[PyTorchObs, np.ndarray], th.Tensor]:
        """
        Start a rollout. The critic is not asked while it runs.

        :param buffer: Where the rollout goes; its context is what a memory actor remembers of the rollout before
        :return: A function from observations [N, *obs_shape] and episode starts [N] to sampled actions [N, *action_shape]
        """
        if not self.memory_actor:
            return lambda obs, episode_starts: self.sample_actions(self.mlp_actor_latent(obs))
        actor = MemoryActor(self, buffer.chunk_length)
        memory = actor.remember(buffer.context())
        return lambda obs, episode_starts: actor.act(obs, memory, episode_starts)

    def sample_actions(self, latent_pi: th.Tensor, deterministic: bool = False) -> th.Tensor:
        """
        :param latent_pi: [N, latent_dim_pi]
        :param deterministic: Whether to sample or use deterministic actions
        :return: Actions, not yet clipped or unscaled, [N, *action_shape]
        """
        if not deterministic and isinstance(self.action_dist, CategoricalDistribution):
            actions = sample_categorical(self.action_net(latent_pi))
        elif not deterministic and type(self.action_dist) is DiagGaussianDistribution:
            actions = sample_gaussian(self.action_net(latent_pi), self.log_std)
        else:
            with without_validation():
                actions = self._get_action_dist_from_latent(latent_pi).get_actions(deterministic=deterministic)
        return actions.reshape((-1, *(self.action_space.shape or ())))

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
        if not self.memory_actor:
            return super().predict(observation, state, episode_start, deterministic)
        self.set_training_mode(False)
        self.stateless_calls.note(state, episode_start)
        obs, vectorized_env = self.obs_to_tensor(observation)
        n_envs = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
        actor = MemoryActor(self)
        memory = actor.from_state(state, n_envs)
        if state is None:
            episode_start = np.ones(n_envs)
        elif episode_start is None:
            episode_start = np.zeros(n_envs)
        actions = actor.act(obs, memory, np.reshape(episode_start, n_envs), deterministic)
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
