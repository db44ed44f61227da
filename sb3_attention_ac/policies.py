"""Policies: SB3's interface to networks that attend to the trajectory."""

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_attention_ac.acting import StateUse, SteppedNetwork, acting_mode, checked_episode_starts
from sb3_attention_ac.architecture import MemoryActorArchitecture, MlpActorArchitecture, resolve_keys
from sb3_attention_ac.argument_names import with_positional
from sb3_attention_ac.attention_q import AttentionQ
from sb3_attention_ac.auxiliary.masked_prediction import MaskedPrediction
from sb3_attention_ac.auxiliary.next_step_prediction import NextStepPrediction
from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.losses import NotFiniteError
from sb3_attention_ac.networks.distributions import (
    as_sb3_distribution,
    check_masks,
    make_action_distribution,
)
from sb3_attention_ac.networks.extractors import as_module, with_actor
from sb3_attention_ac.networks.history_network import HistoryEncoder, HistoryNetwork, Mlp, frozen
from sb3_attention_ac.networks.kv_cache import IncrementalEncoder
from sb3_attention_ac.networks.preprocessing import encode_actions
from sb3_attention_ac.type_aliases import (
    ActionParameters,
    ActorOutput,
    CriticOutput,
    EncoderOutput,
    Obs,
    TrajectoryWindows,
    WindowOutput,
    n_observations,
)
from sb3_attention_ac.validation import (
    check_attention_q_keys,
    check_flags,
    check_integers,
    check_keys,
    check_landmark_rule,
    check_network,
    check_not_overridden,
    check_observation,
)

Act = Callable[[Obs, np.ndarray, th.Tensor | None], ActorOutput]


class AttentionActorCriticPolicy(ActorCriticPolicy):
    """
    SB3's actor-critic policy whose critic attends to the trajectory. At initialization the critic is SB3's MLP critic: what
    attention adds is learned, starting at zero. By default the actor is SB3's MLP, the MLP critic learns as in PPO, and what
    attention adds has to prove itself (:class:`~sb3_attention_ac.value_gate.ValueGate`). Or with ``memory_actor`` the actor
    attends to the trajectory as well, and MLP and attention learn together.

    Called with plain observations (``predict_values``, ``evaluate_actions``, ``get_distribution``, ``forward``), each row is a
    trajectory of one step.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param args: Further arguments of :class:`stable_baselines3.common.policies.ActorCriticPolicy`, in its order
    :param context_length: How many earlier steps L of its episode a step sees at least, if there are as many; 1 or more. It
        sees at most 3L - 1, with ``memory_actor`` L + max(L, 32) - 1
    :param d_model: Width of a token, a multiple of ``n_heads``
    :param n_layers: Number of transformer blocks, 0 for no attention (PPO's critic)
    :param n_heads: Number of attention heads
    :param dim_feedforward: Width of the feed-forward part of a block, None for ``2 * d_model``
    :param dropout: Dropout probability in the critic's own encoder, in [0, 1). The encoder of a memory actor goes without: the
        policy that is trained has to be the one that acted
    :param local_window: With ``memory_actor``, how many of the last steps (stacked frames) feed the MLPs' first layers
        directly, 1 for the current one alone
    :param memory_actor: Whether the actor attends to the trajectory too
    :param share_encoder: With ``memory_actor``, one encoder for actor and critic instead of two
    :param attention_q: Whether to tilt the action distribution by an advantage read from what attention has seen, see
        :class:`~sb3_attention_ac.attention_q.AttentionQ`; the critic then reads no rewards, as ``predict`` is given none
    :param age_input: Whether the encoder, and a memory actor's MLPs, read how many steps the episode has lasted. "sinusoidal"
        also tells which step of the episode it is, see :class:`~sb3_attention_ac.networks.preprocessing.AgeEncoder`
    :param n_landmarks: How many steps of the episode stay readable after they have left the context
    :param landmark_rule: Which ones: "first", its first steps, or "surprise", with ``memory_actor`` and next-step prediction:
        its first step and those that were expected least
    :param actor_keys: Which entries of Dict observations the actor reads, None for all. ``predict`` needs no others
    :param critic_keys: Which entries the critic reads, None for all
    :param aux_targets: What the self-supervised losses predict; None for the next step with a memory actor, else nothing
    :param temperature: Temperature of the contrastive loss
    :param chunk_length: How many steps follow the context in a window; None for the longest
    :param kwargs: Those of :class:`stable_baselines3.common.policies.ActorCriticPolicy` (``net_arch``, ``activation_fn``, ...)
    :raises ValueError: If an argument is out of range or does not go with the others
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *args: Any,
        context_length: int = 32,
        d_model: int = 64,
        n_layers: int = 1,
        n_heads: int = 4,
        dim_feedforward: int | None = None,
        dropout: float = 0.0,
        local_window: int = 4,
        memory_actor: bool = False,
        share_encoder: bool = False,
        attention_q: bool = False,
        age_input: bool | str = False,
        n_landmarks: int = 0,
        landmark_rule: str = "first",
        actor_keys: Sequence[str] | None = None,
        critic_keys: Sequence[str] | None = None,
        aux_targets: Sequence[str] | None = None,
        temperature: float = 0.1,
        chunk_length: int | None = None,
        **kwargs: Any,
    ):
        kwargs = with_positional(kwargs, args)
        check_not_overridden(type(self), AttentionActorCriticPolicy, memory_actor)
        check_flags(memory_actor=memory_actor, share_encoder=share_encoder, attention_q=attention_q)
        self.architecture = (MemoryActorArchitecture if memory_actor else MlpActorArchitecture)(
            context_length=context_length,
            d_model=d_model,
            n_layers=n_layers,
            n_heads=n_heads,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            local_window=local_window,
            share_encoder=share_encoder,
            attention_q=attention_q,
            age_input=age_input,
            n_landmarks=n_landmarks,
            landmark_rule=landmark_rule,
            use_sde=bool(kwargs.get("use_sde")),
        )
        check_network(self.architecture)
        check_keys(observation_space, actor_keys=actor_keys, critic_keys=critic_keys)
        self.memory_actor = memory_actor
        self.actor_keys, self.critic_keys = resolve_keys(observation_space, actor_keys, critic_keys, memory_actor)
        check_attention_q_keys(self.architecture.attention_q and not memory_actor, self.actor_keys, self.critic_keys)
        self._extractor_keys = [self.actor_keys, self.critic_keys]
        self.aux_targets = tuple(self.architecture.default_targets if aux_targets is None else aux_targets)
        check_landmark_rule(self.architecture, self.aux_targets)
        self.temperature = temperature
        self.chunk_length = self.architecture.longest_chunk if chunk_length is None else chunk_length
        check_integers({"chunk_length": (self.chunk_length, 1)})
        if kwargs.get("optimizer_kwargs") is None and kwargs.get("optimizer_class", th.optim.Adam) is th.optim.Adam:
            # SB3's epsilon; the fused step does the same arithmetic in one kernel
            kwargs["optimizer_kwargs"] = {"eps": 1e-5, "fused": True}
        if self.actor_keys != self.critic_keys:
            if kwargs.get("share_features_extractor"):
                warnings.warn(
                    "share_features_extractor=True has no effect: actor_keys and critic_keys differ, so actor and critic have "
                    "separate features extractors.",
                    stacklevel=2,
                )
            kwargs["share_features_extractor"] = False
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        self.state_use = StateUse()
        self.acting_mode: type[th.inference_mode | th.no_grad] = th.no_grad

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(self.architecture.arguments())
        names = "share_features_extractor actor_keys critic_keys aux_targets temperature chunk_length"
        data.update({name: getattr(self, name) for name in names.split()})
        return data

    def __deepcopy__(self, memo: dict[int, Any]) -> "AttentionActorCriticPolicy":
        """A copy. SB3's distributions hold tensors of the last pass, which PyTorch does not copy."""
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        for name, value in vars(self.action_dist).items():
            if isinstance(value, th.Tensor):
                memo[id(value)] = value.detach().clone()
            elif isinstance(value, (th.distributions.Distribution, list)) and name in ("distribution", "weights_dist"):
                memo[id(value)] = value
        vars(new).update(copy.deepcopy(vars(self), memo))
        return new

    # --- construction ---------------------------------------------------------------------------------------------------

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """:return: The features extractor of the actor (or of both), at the next call that of the critic"""
        space, keys = self.observation_space, self._extractor_keys[0]
        self._extractor_keys = self._extractor_keys[-1:]  # the critic's, however often one is made after it
        if isinstance(space, spaces.Dict) and keys is not None:
            space = spaces.Dict({key: space.spaces[key] for key in keys})
        extractor: Any = self.features_extractor_class(space, **self.features_extractor_kwargs)
        extractor.keys_read = keys  # goes with its copies, as that of the masked prediction
        made: BaseFeaturesExtractor = extractor
        return made

    def _build_mlp_extractors(self, build: Callable[[], None]) -> None:
        """
        The MLPs of actor and critic, which have other widths where the critic reads other entries of Dict observations.

        :param build: SB3's ``_build_mlp_extractor``, or an override of it
        """
        build()
        actor_dim, critic_dim = self.features_dim, self._critic_extractor.features_dim
        if critic_dim != actor_dim:
            actor, self.features_dim = self.mlp_extractor, critic_dim
            build()
            self.mlp_extractor, self.features_dim = with_actor(self.mlp_extractor, actor), actor_dim

    def _build(self, lr_schedule: Schedule) -> None:
        build = self._build_mlp_extractor
        vars(self)["_build_mlp_extractor"] = lambda: self._build_mlp_extractors(build)  # in the middle of SB3's
        try:
            super()._build(lr_schedule)
        finally:
            del vars(self)["_build_mlp_extractor"]
        # Networks beside SB3's take nothing from the random stream: while the gate is closed, a run is PPO's with that seed
        with th.random.fork_rng(devices=[]):
            self._build_attention()
        attention = [self.critic_network, self.masked_prediction, self.next_step_prediction, self.attention_q]
        parameters = self.architecture.parameter_groups(list(self.parameters()), attention)
        self.optimizer = self.optimizer_class(parameters, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def use_action_dist(self) -> None:
        """
        Sample and learn by ``action_dist``, also where a subclass or a user has replaced it.

        :raises TypeError: If it is one that would not be called
        """
        if self.action_dist is self._used_dist:
            return
        self.distribution = make_action_distribution(self.action_space, self.action_dist)
        self._used_dist: Distribution | None = self.action_dist
        if self.attention_q is not None:
            self.attention_q.use(self.distribution)

    def _build_attention(self) -> None:
        self.attention_q: AttentionQ | None = None
        self._used_dist = None
        self.use_action_dist()
        self._actions_shape = (-1, *(self.action_space.shape or ()))  # of a batch
        architecture, mlps = self.architecture, self.mlp_extractor
        features_dims = self._actor_extractor.features_dim, self._critic_extractor.features_dim
        self.actor_network, self.critic_network, self.value_gate = architecture.build(mlps, features_dims, self.action_space)
        stepped_dim = features_dims[0] if self.memory_actor else features_dims[1]
        next_step, masked = None, tuple(target for target in self.aux_targets if target != "next_step")
        if "next_step" in self.aux_targets:
            next_step = NextStepPrediction(architecture.d_model, spaces.flatdim(self.action_space), stepped_dim)
        arguments = architecture.d_model, *self._trained_by_masking(), self.action_space, self.temperature
        self.masked_prediction = MaskedPrediction(masked, *arguments) if masked else None
        self.next_step_prediction = next_step  # in this order: files hold the optimizer's state by the number of a parameter
        if architecture.attention_q:
            latent_dim = mlps.latent_dim_pi if self.memory_actor else mlps.latent_dim_vf
            n_parameters = self.action_net(th.zeros((1, mlps.latent_dim_pi))).shape[-1]
            self.attention_q = AttentionQ(latent_dim, self.distribution, n_parameters)

    def _trained_by_masking(self) -> tuple[BaseFeaturesExtractor, nn.Module, int]:
        """:return: Features extractor and MLP before the encoder that the critic reads, and the width of the MLP's output"""
        mlps = self.mlp_extractor
        if self.actor_network is not None and self.critic_network.encoder is None:
            return self._actor_extractor, as_module(mlps, "policy_net", "forward_actor"), mlps.latent_dim_pi
        return self._critic_extractor, as_module(mlps, "value_net", "forward_critic"), mlps.latent_dim_vf

    def masked_encoder(self) -> HistoryEncoder:
        """:return: The encoder that the critic reads: what the masked prediction teaches"""
        actor, critic = self.actor_encoder, self.critic_encoder
        return critic if actor is None or critic.network.encoder is not None else actor

    def sync_key_encoder(self) -> None:
        """Start the key encoder of the masked prediction anew, where what it follows has been replaced."""
        if self.masked_prediction is not None:
            self.masked_prediction.sync_key_encoder(*self._trained_by_masking()[:2])

    def update_key_encoder(self) -> None:
        """Let the key encoder of the masked prediction follow the critic's, after a step of the optimizer."""
        if self.masked_prediction is not None:
            self.masked_prediction.update_key_encoder(*self._trained_by_masking()[:2])

    # --- passes over windows --------------------------------------------------------------------------------------------

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """
        :param obs: Observations, [N, *obs_shape]
        :param features_extractor: The features extractor to use
        :return: Features [N, features_dim]; without a given extractor and with two of them, those of actor and critic
        """
        own: Any = super(ActorCriticPolicy, self).extract_features
        if features_extractor is not None:
            return own(self._entries(obs, features_extractor), features_extractor)
        if self.share_features_extractor:
            return own(self._entries(obs, self.features_extractor), self.features_extractor)
        return tuple(own(self._entries(obs, e), e) for e in (self._actor_extractor, self._critic_extractor))

    @property
    def _actor_extractor(self) -> BaseFeaturesExtractor:
        """The actor's features extractor, which a user may have replaced; SB3's other names for a shared one are older"""
        return self.features_extractor if self.share_features_extractor else self.pi_features_extractor

    @property
    def _critic_extractor(self) -> BaseFeaturesExtractor:
        """Likewise the critic's"""
        return self.features_extractor if self.share_features_extractor else self.vf_features_extractor

    def _entries(self, obs: PyTorchObs, extractor: BaseFeaturesExtractor) -> PyTorchObs:
        """Only those entries of Dict observations that the extractor reads"""
        if not isinstance(obs, dict):
            return obs
        keys: Any = getattr(extractor, "keys_read", None)
        if keys is None:  # one of the user's own, put in later
            keys = self.actor_keys if extractor is self._actor_extractor else self.critic_keys
        return obs if keys is None or len(keys) == len(obs) else {key: obs[key] for key in keys}

    @property
    def actor_encoder(self) -> HistoryEncoder | None:
        """A memory actor's way from raw steps to latents; None for an MLP actor"""
        if self.actor_network is None:
            return None
        mlp = self.mlp_extractor.forward_actor
        return self._history_encoder(self.actor_network, self._actor_extractor, mlp, reads_rewards=False)

    @property
    def critic_encoder(self) -> HistoryEncoder:
        """The critic's way from raw steps to latents"""
        acts = self.architecture.attention_q and not self.memory_actor  # then it is stepped, without rewards
        mlp = self.mlp_extractor.forward_critic
        return self._history_encoder(self.critic_network, self._critic_extractor, mlp, reads_rewards=not acts)

    def _history_encoder(
        self, network: HistoryNetwork, extractor: BaseFeaturesExtractor, mlp: Mlp, reads_rewards: bool
    ) -> HistoryEncoder:
        encode_previous = self.architecture.previous_step_encoder(self.action_space, reads_rewards)
        return HistoryEncoder(lambda obs: self.extract_features(obs, extractor), mlp, network, encode_previous)

    def encode_windows(
        self, windows: TrajectoryWindows, n: int, skip_critic: bool = False, attends: bool = True
    ) -> WindowOutput:
        """
        :param windows: N windows
        :param n: How many of their last steps to return; the steps before them are context
        :param skip_critic: Whether to ask a memory actor alone
        :param attends: Whether the critic attends; else it is its MLP alone
        :return: What the networks make of these steps
        """
        actor, critic, output = self.actor_encoder, self.critic_encoder, None
        if skip_critic and actor is not None:
            features = actor.features(windows)
            return WindowOutput(actor(windows, features, n), None, features)
        features = stepped_features = critic.features(windows)
        if actor is not None:
            if not self.share_features_extractor:
                stepped_features = actor.features(windows)
            output = actor(windows, stepped_features, n)
        hidden = None if output is None else output.hidden
        return WindowOutput(output, critic(windows, features, n, hidden, attends), stepped_features)

    def critic_output(self, output: EncoderOutput) -> CriticOutput:
        """
        :param output: Of the critic's history network, [..., latent_dim_vf]
        :return: Values, [...]
        """
        if self.value_gate is None or output.hidden is None:  # None: attention was not asked
            values = self.value_net(output.latent).squeeze(-1)
            return CriticOutput(values, values, None)
        with frozen(self.value_net):  # as the MLP, the head learns from transitions
            mlp_values = self.value_net(output.mlp_latent).squeeze(-1)
            residual = self.value_net(output.latent).squeeze(-1) - mlp_values
        return CriticOutput(mlp_values + self.value_gate.gate * residual, mlp_values, residual)

    @property
    def skips_attention(self) -> bool:
        """Whether an MLP actor's critic is SB3's for now: nothing needs what its attention makes of a rollout"""
        if self.memory_actor or self.attention_q is not None or self.aux_targets:
            return False
        return self.value_gate is None or self.value_gate.is_skipped

    def action_parameters(
        self,
        latent_pi: th.Tensor,
        latent_sde: th.Tensor | None = None,
        masks: th.Tensor | None = None,
        offsets: th.Tensor | None = None,
    ) -> ActionParameters:
        """
        :param latent_pi: [N, latent_dim_pi]
        :param latent_sde: What gSDE multiplies with its noise matrix, [N, latent_dim_pi]; None for ``latent_pi``, as in SB3. A
            memory actor gives the output of its MLP alone: noise grows with these latents, what attention adds is unbounded
        :param masks: True where an action is allowed, [N, mask_dim]
        :param offsets: What to add to logits or means, [N, n_parameters]
        :return: What the distributions of actions are made of
        """
        parameters: th.Tensor = self.action_net(latent_pi)
        if offsets is not None:
            parameters = parameters + offsets
        latent_sde = (latent_pi if latent_sde is None else latent_sde) if self.use_sde else None
        return ActionParameters(parameters, latent_sde, masks, getattr(self, "log_std", None))

    # --- SB3's interface, on plain observations: each row a trajectory of one step ----------------------------------------

    def _single_step_actions(self, obs: PyTorchObs, masks: th.Tensor | None) -> ActionParameters:
        """The action distribution of each observation; what is the critic's alone need not be there"""
        output = None
        if self.remembers:
            windows = TrajectoryWindows.of_single_steps(self._with_axis(obs), get_action_dim(self.action_space))
            output = self.encode_windows(windows, 1, skip_critic=True).stepped.squeezed()
        return self.decide(obs, output, masks, self.tilts)[0]

    def _single_steps(self, obs: PyTorchObs, masks: th.Tensor | None) -> tuple[ActionParameters, th.Tensor]:
        """The action distribution of each observation, and their values, [N, 1]"""
        windows = TrajectoryWindows.of_single_steps(self._with_axis(obs), get_action_dim(self.action_space))
        encoded = self.encode_windows(windows, 1)
        assert encoded.critic is not None
        critic = self.critic_output(encoded.critic)
        values = critic.values  # [N, 1]
        if critic.residual is not None and self.value_gate is not None:  # gradients go to SB3's critic, unlike critic_output's
            features = self.extract_features(obs, self._critic_extractor)
            values = self.value_net(self.mlp_extractor.forward_critic(features)) + self.value_gate.gate * critic.residual
        return self.decide(obs, encoded.stepped.squeezed(), masks, self.tilts)[0], values

    def _with_axis(self, obs: PyTorchObs) -> Obs:
        """Scalars of a Discrete space as [N, 1], as the buffer stores them"""
        if isinstance(obs, dict):
            parts = getattr(self.observation_space, "spaces", {})
            return {k: v.reshape(-1, 1) if isinstance(parts[k], spaces.Discrete) else v for k, v in obs.items()}
        return obs.reshape(-1, 1) if isinstance(self.observation_space, spaces.Discrete) else obs

    def forward(
        self, obs: PyTorchObs, deterministic: bool = False, action_masks: Any = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param obs: Observations
        :param deterministic: Whether to sample or use deterministic actions
        :param action_masks: True where an action is allowed, [N, mask_dim]
        :return: actions, values [N, 1] and log probabilities of the actions [N]
        """
        given, values = self._single_steps(obs, self.checked_masks(action_masks, obs))
        actions, log_prob = self.distribution.sample(given, deterministic)
        if isinstance(self.action_space, spaces.MultiBinary):
            actions = actions.float()  # as SB3's Bernoulli distribution has them
        return actions.reshape(self._actions_shape), values, log_prob

    def evaluate_actions(
        self, obs: PyTorchObs, actions: th.Tensor, action_masks: Any = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        :param obs: Observations
        :param actions: Actions
        :param action_masks: True where an action is allowed, [N, mask_dim]
        :return: values [N, 1], log probabilities of the actions [N] and entropy of the action distributions [N]
        """
        if self.remembers and self.training and th.is_grad_enabled():
            warnings.warn(
                "evaluate_actions() takes each observation for the first of its episode. What trains a memory actor with it "
                "(PPO, behaviour cloning) trains it without a memory; AttentionActorCritic trains it on trajectories.",
                stacklevel=2,
            )
        given, values = self._single_steps(obs, self.checked_masks(action_masks, obs))
        actions = actions.reshape(len(values), -1)
        return values, *self.distribution.log_prob_and_entropy(given, actions)

    def get_distribution(self, obs: PyTorchObs, action_masks: Any = None) -> Distribution:
        """
        :param obs: Observations
        :param action_masks: True where an action is allowed, [N, mask_dim]
        :return: The action distribution of each; contrib's maskable one with masks
        """
        given = self._single_step_actions(obs, self.checked_masks(action_masks, obs))
        return as_sb3_distribution(given, self.action_dist, self.action_space)

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: Observations
        :return: Their values, [N, 1]
        """
        return self._single_steps(obs, None)[1]

    def checked_masks(self, action_masks: Any, obs: PyTorchObs) -> th.Tensor | None:
        """:raises ValueError: If they do not go with the observations"""
        if action_masks is None:
            return None
        n = n_observations(obs)
        return check_masks(action_masks, self.distribution, n, self.device)

    # --- acting -----------------------------------------------------------------------------------------------------------

    def mlp_actor_latent(self, obs: PyTorchObs) -> th.Tensor:
        """:return: SB3's actor latent of each observation, [N, latent_dim_pi]"""
        return self.mlp_extractor.forward_actor(self.extract_features(obs, self._actor_extractor))

    @property
    def tilts(self) -> bool:
        """Whether Q_att changes actions: with ``attention_q``, once it has earned it"""
        return self.attention_q is not None and self.attention_q.is_open

    @property
    def remembers(self) -> bool:
        """Whether acting needs a memory"""
        return self.memory_actor or self.tilts

    def decide(
        self, obs: PyTorchObs, output: EncoderOutput | None, masks: th.Tensor | None, tilts: bool, in_rollout: bool = False
    ) -> tuple[ActionParameters, th.Tensor | None]:
        """
        :param obs: Observations, [N, *obs_shape]
        :param output: What the network that is stepped makes of them, [N, ...]; None where acting needs no memory
        :param masks: True where an action is allowed, [N, mask_dim]
        :param tilts: Whether Q_att changes actions
        :param in_rollout: Whether these actions are learned from
        :return: What the distributions of actions are made of, and what Q_att added
        """
        if output is not None and self.memory_actor:
            given = self.action_parameters(output.latent, output.mlp_latent, masks)
        else:
            given = self.action_parameters(self.mlp_actor_latent(obs), None, masks)
        if output is None or self.attention_q is None or not tilts:
            return given, None
        offsets = self.attention_q.tilt(output.latent, given, in_rollout)
        return given._replace(parameters=given.parameters + offsets), offsets

    def stepped_network(self) -> SteppedNetwork:
        """The network that is stepped while acting: a memory actor's, or beside an MLP actor with Q_att the critic's"""
        encoder, extractor = self.actor_encoder, self._actor_extractor
        if encoder is None:
            encoder, extractor = self.critic_encoder, self._critic_extractor
        n_context, n_landmarks = self.architecture.n_context, self.architecture.n_landmarks
        surprise = self._surprise if self.architecture.landmark_rule == "surprise" else None
        incremental = IncrementalEncoder(encoder.network, encoder.mlp, n_context, self.chunk_length, n_landmarks, surprise)
        return SteppedNetwork(encoder, incremental, extractor.features_dim, get_action_dim(self.action_space))

    def _surprise(self, hidden: th.Tensor, before: th.Tensor, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """As :meth:`sb3_attention_ac.auxiliary.next_step_prediction.NextStepPrediction.surprise`, of actions as sampled"""
        assert self.next_step_prediction is not None
        return self.next_step_prediction.surprise(hidden, before, features, encode_actions(actions, self.action_space))

    def start_acting(self, buffer: TrajectoryRolloutBuffer, deterministic: bool = False, in_rollout: bool = True) -> Act:
        """
        Start a rollout.

        :param buffer: Where the rollout goes; its context is what is remembered of the rollout before
        :param deterministic: Whether to sample or use deterministic actions
        :param in_rollout: Whether these actions are learned from
        :return: A function from observations [N, *obs_shape], episode starts [N] and action masks [N, mask_dim] to actions
        """
        stepped = self.stepped_network() if self.remembers else None
        cache = None if stepped is None else stepped.prefill(buffer.context())
        tilts = self.tilts  # for the whole rollout, whatever a callback loads meanwhile

        def act(obs: Obs, episode_starts: np.ndarray, masks: th.Tensor | None) -> ActorOutput:
            output = surprise = None
            if stepped is not None and cache is not None:
                if buffer.pos > 0:  # as stored: a callback may have changed it
                    cache.previous_action.copy_(buffer.to_torch(buffer.actions[buffer.pos - 1]))
                output = stepped.step(obs, cache, episode_starts)
            given, offsets = self.decide(obs, output, masks, tilts, in_rollout)
            actions, log_prob = self._sample(given, deterministic)
            if cache is not None and self.architecture.landmark_rule == "surprise":
                surprise = cache.last_surprise()
            return ActorOutput(actions.reshape(self._actions_shape), log_prob, offsets, surprise)

        return act

    def _sample(self, given: ActionParameters, deterministic: bool) -> tuple[th.Tensor, th.Tensor]:
        """:raises ValueError: If there is NaN or infinity: the actions would look valid, a memory would keep it"""
        actions, log_prob = self.distribution.sample(given, deterministic)
        if not math.isfinite(log_prob.detach().sum()):  # logits may be -inf: a network's own way to forbid actions
            raise NotFiniteError(
                "The actor's output is not finite: check the observations for NaN or infinity (VecCheckNan of "
                "Stable-Baselines3 tells where they come from)."
            )
        return actions, log_prob

    def _predict(self, observation: PyTorchObs, deterministic: bool = False, action_masks: Any = None) -> th.Tensor:
        """
        :param observation: Observations
        :param deterministic: Whether to sample or use deterministic actions
        :param action_masks: True where an action is allowed, [N, mask_dim]
        :return: Actions without a past, [N, *action_shape]
        """
        given = self._single_step_actions(observation, self.checked_masks(action_masks, observation))
        return self._sample(given, deterministic)[0].reshape(self._actions_shape)

    def set_training_mode(self, mode: bool) -> None:
        """:param mode: True for training, False for acting"""
        super().set_training_mode(mode)
        self.use_action_dist()
        if not mode:
            self.acting_mode = acting_mode(self)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Get actions from observations, and for a memory actor the state to pass to the next call.

        :param observation: One observation, or one per environment
        :param state: What the last call returned; None to start without a past (with masks: or to go on, where
            ``episode_start`` says that episodes do, as contrib's ``evaluate_policy`` does not pass it on)
        :param episode_start: Whether each observation is the first of its episode; None: none is. Without a state all are
        :param deterministic: Whether or not to return deterministic actions
        :param action_masks: True where an action is allowed, [N, mask_dim] or any shape with as many entries
        :return: the actions and the next state (an MLP actor: what was given)
        :raises ValueError: If state, episode starts or masks do not go with the observations
        """
        check_observation(observation, self.observation_space, self.actor_keys)
        if isinstance(observation, Mapping) and self.actor_keys is not None:
            observation = {key: observation[key] for key in self.actor_keys}  # others may be anything
        if self.training:
            self.set_training_mode(False)
        self.use_action_dist()
        if episode_start is not None:
            episode_start = np.asarray(episode_start)
        with self.acting_mode():
            obs, vectorized_env = self.obs_to_tensor(observation)
            if self.remembers:
                state = self.state_use.resolve(state, episode_start, action_masks is not None)
                stepped, n = self.stepped_network(), n_observations(obs)
                cache = self.state_use.cache_of(state, n, stepped.incremental.n_slots) or stepped.from_state(state, n)
                output = stepped.step(obs, cache, checked_episode_starts(state, episode_start, n))
                given, _ = self.decide(obs, output, self.checked_masks(action_masks, obs), self.tilts)
                actions, _ = self._sample(given, deterministic)
                cache.previous_action.copy_(actions)
                state = self.state_use.returned(cache)
            else:
                masks = {} if action_masks is None else {"action_masks": action_masks}
                actions = self._predict(obs, deterministic, **masks)
        env_actions = self.actions_for_env(actions.cpu().numpy().reshape(self._actions_shape))
        return env_actions if vectorized_env else env_actions.squeeze(axis=0), state

    def actions_for_env(self, actions: np.ndarray) -> np.ndarray:
        """
        :param actions: As sampled from the distribution, [N, *action_shape]
        :return: As the environment takes them: unscaled (gSDE with ``squash_output``) or clipped to a Box's bounds, counted
            from the start of a Discrete space
        """
        if not isinstance(self.action_space, spaces.Box):
            return actions + getattr(self.action_space, "start", 0)
        if self.squash_output:
            return self.unscale_action(actions)
        clipped: np.ndarray = np.clip(actions, self.action_space.low, self.action_space.high)
        return clipped


class AttentionActorCriticCnnPolicy(AttentionActorCriticPolicy):
    """As :class:`AttentionActorCriticPolicy`; the features extractor is SB3's ``NatureCNN`` (images) by default."""

    def __init__(self, *args: Any, features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN, **kwargs: Any):
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


class AttentionActorCriticMultiInputPolicy(AttentionActorCriticPolicy):
    """As :class:`AttentionActorCriticPolicy`; the features extractor is SB3's ``CombinedExtractor`` (Dict) by default."""

    def __init__(self, *args: Any, features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor, **kwargs: Any):
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)
