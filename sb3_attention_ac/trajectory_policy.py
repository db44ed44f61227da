"""The networks of a policy that attends to trajectories, and one pass of them over windows."""

from typing import Any

import torch as th
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_attention_ac.actor import ActorPolicy
from sb3_attention_ac.attention_q import AttentionQ, Tilt
from sb3_attention_ac.auxiliary import MaskedPrediction
from sb3_attention_ac.checks import check_attention_q, check_flags, check_network
from sb3_attention_ac.encoder import TrajectoryEncoder
from sb3_attention_ac.evaluations import ActorEvaluation, Remembered, WindowEvaluation, WindowLatents
from sb3_attention_ac.live import LivePrediction
from sb3_attention_ac.parameter_groups import mlps_and_attention
from sb3_attention_ac.trajectory import TrajectoryWindows, action_encoding_dim, encode_actions, local_window, map_obs, symlog
from sb3_attention_ac.trunk import AttentionTrunk, TrunkOutput
from sb3_attention_ac.value_gate import ValueGate

SHORTEST_CHUNK = 32  # steps, of a memory actor: with shorter ones most of a minibatch's steps are context


class TrajectoryPolicy(ActorPolicy):
    """
    SB3's actor-critic policy whose critic attends to the trajectory. At initialisation the critic is SB3's MLP critic: what
    attention adds is learned, starting at zero. The actor is SB3's MLP actor; then SB3's MLP critic learns as in PPO and what
    attention adds has to prove itself (:class:`~sb3_attention_ac.value_gate.ValueGate`). Or with ``memory_actor`` the actor
    attends to the trajectory as well, and MLP and attention learn as one.

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
        most three times as many, less one (with ``memory_actor`` twice as many, less one, or 31 more)
    :param d_model: Width of a token, a multiple of ``n_heads``
    :param n_layers: Number of transformer blocks, 0 for no attention (PPO's critic)
    :param n_heads: Number of attention heads
    :param dim_feedforward: Width of the feed-forward part of a block, None for ``2 * d_model``
    :param dropout: Dropout probability in the encoder, in [0, 1)
    :param local_window: With ``memory_actor``, how many of the last steps feed the MLPs' first layers directly, 1 for the
        current one alone
    :param memory_actor: Whether the actor attends to the trajectory too
    :param share_encoder: With ``memory_actor``, one encoder for actor and critic instead of two
    :param attention_q: Whether to tilt the action distribution by an advantage read from what attention gathers, see
        :class:`~sb3_attention_ac.attention_q.AttentionQ`; the critic then reads no rewards, ``predict`` has none to give
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
        attention_q: bool = False,
        aux_targets: tuple[str, ...] = (),
        temperature: float = 0.1,
    ):
        check_flags(memory_actor=memory_actor, share_encoder=share_encoder, attention_q=attention_q)
        check_network(context_length, d_model, n_layers, n_heads, dim_feedforward, dropout, local_window, memory_actor)
        check_attention_q(attention_q, n_layers, use_sde)
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
        self.use_attention_q = attention_q
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

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        names = "share_features_extractor context_length d_model n_layers n_heads dim_feedforward dropout local_window"
        names += " memory_actor share_encoder aux_targets temperature"
        data.update({name: getattr(self, name) for name in names.split()})
        data["attention_q"] = self.use_attention_q
        return data

    # --- construction ---------------------------------------------------------------------------------------------------

    @property
    def n_context(self) -> int:
        """How many steps before a chunk its windows need"""
        return self.context_length if self.n_layers > 0 else 0

    @property
    def chunk_length(self) -> int:
        """How many consecutive steps follow this context in a window: more for a critic alone, so that less is overlap."""
        return max(self.context_length, SHORTEST_CHUNK) if self.memory_actor else 2 * self.context_length

    @property
    def action_event_dim(self) -> int:
        """
        Width of an encoded previous action; 0 with gSDE, whose noise is held over steps: who has seen the last action knows
        the noise of the next one. A value that knows it leaves no advantage to learn from (measured: docs/research.md).
        """
        return 0 if self.use_sde else action_encoding_dim(self.action_space)

    @property
    def critic_reads_rewards(self) -> bool:
        """False for a critic that is stepped while acting: ``predict`` has no rewards to give."""
        return self.memory_actor or not self.use_attention_q

    def _make_encoder(self, latent_dim: int, event_dim: int) -> TrajectoryEncoder | None:
        if self.n_layers == 0:
            return None
        return TrajectoryEncoder(
            latent_dim,
            event_dim,
            self.d_model,
            self.n_layers,
            self.n_heads,
            self.dim_feedforward or 2 * self.d_model,
            self.dropout,
            reach=2 * self.context_length,
        )

    def _build_mlp_extractor(self) -> None:
        """Create SB3's policy and value networks, and the trunks and heads that go with them."""
        super()._build_mlp_extractor()
        mlp, action_dim = self.mlp_extractor, action_encoding_dim(self.action_space)
        gathered_dim = self.d_model if self.n_layers > 0 else 0
        shared = self.memory_actor and self.share_encoder
        if self.memory_actor:
            encoder = self._make_encoder(mlp.latent_dim_pi, self.action_event_dim)
            self.actor_trunk = AttentionTrunk(
                mlp.policy_net, self.features_dim, mlp.latent_dim_pi, self.local_window, encoder, gathered_dim
            )
        event_dim = self.action_event_dim + int(self.critic_reads_rewards)
        encoder = None if shared else self._make_encoder(mlp.latent_dim_vf, event_dim)
        n_local, mlp_is_given = (self.local_window, False) if self.memory_actor else (1, True)
        self.critic_trunk = AttentionTrunk(
            mlp.value_net, self.features_dim, mlp.latent_dim_vf, n_local, encoder, gathered_dim, mlp_is_given
        )
        self.value_gate = ValueGate() if gathered_dim > 0 and not self.memory_actor else None
        self.auxiliary = self.live = None
        if "live" in self.aux_targets:
            self.live = LivePrediction(self.d_model, action_dim, self.features_dim)
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
        if not hasattr(self, "critic_trunk"):
            raise TypeError(
                f"{type(self).__name__}._build_mlp_extractor() does not call the parent's, which makes the networks that "
                "attend: call it, or change the networks by net_arch, activation_fn and features_extractor_class."
            )
        self.attention_q = None
        if self.use_attention_q:
            action_net: Any = self.action_net
            trunk_dim = self.mlp_extractor.latent_dim_pi if self.memory_actor else self.mlp_extractor.latent_dim_vf
            self.attention_q = AttentionQ(trunk_dim, self.action_space, action_net.out_features)
        optimizer_class: Any = self.optimizer_class
        parameters: Any = self.parameters() if self.memory_actor else mlps_and_attention(self)
        self.optimizer = optimizer_class(parameters, lr=lr_schedule(1), **self.optimizer_kwargs)
        if self.auxiliary is not None:
            self.auxiliary.update_key_encoder(self, 1.0)

    def encoder_trunk(self) -> tuple[AttentionTrunk, nn.Sequential]:
        """:return: The trunk whose encoder the critic reads, and its MLP"""
        if self.memory_actor and self.share_encoder:
            return self.actor_trunk, self.mlp_extractor.policy_net
        return self.critic_trunk, self.mlp_extractor.value_net

    # --- one pass over windows ------------------------------------------------------------------------------------------

    def window_features(self, windows: TrajectoryWindows, extractor: BaseFeaturesExtractor) -> th.Tensor:
        """:return: Features of every step, [N, W, features_dim]"""
        features = self.features(windows.flat_observations(), extractor)
        return features.reshape(*windows.episode_ids.shape, -1)  # [N * W, F] -> [N, W, F]

    def _local_windows(
        self, windows: TrajectoryWindows, extractor: BaseFeaturesExtractor, trunk: AttentionTrunk
    ) -> tuple[th.Tensor, th.Tensor]:
        """:return: Features of every step, [N, W, F], and their local windows, [N, W, F * (1 + n_previous)]"""
        features = self.window_features(windows, extractor)
        return features, local_window(features, windows.episode_ids, trunk.n_previous)

    def encode_events(
        self, actions: th.Tensor, episode_starts: th.Tensor | None, rewards: th.Tensor | None = None
    ) -> th.Tensor:
        """
        What happened just before each step; zeros at the first step of an episode.

        :param actions: Previous actions, [..., action_dim]
        :param episode_starts: [...]; None if no step is the first of its episode
        :param rewards: Previous rewards [...], for the critic only: ``predict`` has none to give
        :return: [..., event_dim]
        """
        events = encode_actions(actions, self.action_space)[..., : self.action_event_dim]
        if rewards is not None:
            events = th.cat([events, symlog(rewards).unsqueeze(-1)], dim=-1)
        return events if episode_starts is None else events.masked_fill(episode_starts.unsqueeze(-1), 0.0)

    def _actor_output(self, windows: TrajectoryWindows, n_queries: int, recent: th.Tensor) -> TrunkOutput:
        """What a memory actor makes of the last steps of each window, [N, n_queries, ...]; ``recent``: its local windows"""
        events = self.encode_events(windows.previous_actions, windows.episode_starts)
        output: TrunkOutput = self.actor_trunk(self.mlp_extractor.policy_net, recent, events, windows.episode_ids, n_queries)
        return output

    def window_latents(self, windows: TrajectoryWindows, n_queries: int, acted: TrunkOutput | None = None) -> WindowLatents:
        """
        The causal latents of the last steps of each window.

        :param windows: N windows
        :param n_queries: How many of their last steps to return
        :param acted: What a memory actor made of these steps, [N, n_queries, ...], if it is known already
        :return: Latents of actor and critic
        """
        with th.set_grad_enabled(th.is_grad_enabled() and not self.critic_trunk.mlp_is_given):
            features, recent = self._local_windows(windows, self.vf_features_extractor, self.critic_trunk)
        actor = acted
        if self.memory_actor and actor is None:
            actor_recent = recent
            if not self.share_features_extractor:
                features, actor_recent = self._local_windows(windows, self.pi_features_extractor, self.actor_trunk)
            actor = self._actor_output(windows, n_queries, actor_recent)
        if self.critic_trunk.encoder is None:
            gathered = None if actor is None else actor.gathered
            critic = self.critic_trunk.read(self.mlp_extractor.value_net, recent[:, -n_queries:], gathered)
        else:
            rewards = windows.previous_rewards if self.critic_reads_rewards else None
            events = self.encode_events(windows.previous_actions, windows.episode_starts, rewards)
            critic = self.critic_trunk(self.mlp_extractor.value_net, recent, events, windows.episode_ids, n_queries)
        return WindowLatents(actor, critic, features)

    def values_and_added(self, critic: TrunkOutput) -> tuple[th.Tensor, th.Tensor | None]:
        """
        :param critic: The critic's latents, [..., latent_dim_vf]
        :return: V(h_t) [...], and what attention would add to V_mlp(s_t) with a share of one, [...] or None
        """
        if self.value_gate is None:
            return self.value_net(critic.latents).squeeze(-1), None
        # As the MLP, its head learns from transitions: no gradient
        weight, bias = self.value_net.weight.detach(), self.value_net.bias.detach()
        values, attended = (F.linear(x, weight, bias).squeeze(-1) for x in (critic.mlp_latents, critic.latents))
        added = attended - values
        return values + self.value_gate.share * added, added

    def evaluate_windows(
        self,
        windows: TrajectoryWindows,
        actions: th.Tensor,
        offsets: th.Tensor | None = None,
        acted: TrunkOutput | None = None,
    ) -> WindowEvaluation:
        """
        Values of the last steps of each window, and for a memory actor the log probabilities of their actions.

        :param windows: N windows
        :param actions: Actions of their last n steps, [N, n, action_dim]
        :param offsets: What was added to the parameters of their distributions, [N, n, n_parameters]
        :param acted: What a memory actor made of these steps, [N, n, ...], if it is known already
        :return: What actor and critic say of these steps
        """
        n = actions.shape[1]
        latents = self.window_latents(windows, n, acted)
        values, added = self.values_and_added(latents.critic)
        action_advantages = None
        if self.attention_q is not None:
            action_advantages = self._action_advantages(windows, latents, actions, offsets)
        if latents.actor is None:
            return WindowEvaluation(values, latents, added, action_advantages)
        return WindowEvaluation(values, latents, added, action_advantages, *self._of_windows(latents.actor, actions, offsets))

    def evaluate_memory_actor(
        self, windows: TrajectoryWindows, actions: th.Tensor, offsets: th.Tensor | None = None
    ) -> ActorEvaluation:
        """
        The memory actor alone.

        :param windows: N windows
        :param actions: Actions of their last n steps, [N, n, action_dim]
        :param offsets: What was added to the parameters of their distributions, [N, n, n_parameters]
        :return: What the actor says of these steps
        """
        features, recent = self._local_windows(windows, self.pi_features_extractor, self.actor_trunk)
        actor = self._actor_output(windows, actions.shape[1], recent)
        return ActorEvaluation(*self._of_windows(actor, actions, offsets), Remembered(actor.gathered, features))

    def _of_windows(
        self, actor: TrunkOutput, actions: th.Tensor, offsets: th.Tensor | None
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """:meth:`log_prob_and_entropy` of steps of windows, [N, n] each"""
        log_prob, entropy = self.log_prob_and_entropy(
            actor.latents.flatten(0, 1),  # [N, n, H] -> [N * n, H]
            actions.flatten(0, 1),
            None if offsets is None else offsets.flatten(0, 1),
            actor.mlp_latents.flatten(0, 1),
        )
        shape = actions.shape[:2]  # [N, n]
        return log_prob.reshape(shape), None if entropy is None else entropy.reshape(shape)

    # --- Q_att --------------------------------------------------------------------------------------------------------------

    def _action_advantages(
        self,
        windows: TrajectoryWindows,
        latents: WindowLatents,
        actions: th.Tensor,
        offsets: th.Tensor | None,
    ) -> th.Tensor:
        """A_att of the actions of the last steps of each window, [N, n]"""
        assert self.attention_q is not None
        n = actions.shape[1]
        with th.no_grad():
            if latents.actor is not None:
                latent_pi = latents.actor.latents
            else:
                last: PyTorchObs = map_obs(lambda obs: obs[:, -n:].flatten(0, 1), windows.observations)
                latent_pi = self.mlp_actor_latent(last).reshape(*actions.shape[:2], -1)  # [N * n, H] -> [N, n, H]
            parameters = self.action_parameters(latent_pi, offsets)
        stepped = latents.actor or latents.critic
        return self.attention_q.advantages(stepped.latents, actions, parameters, self.fixed_log_std())

    def fixed_log_std(self) -> th.Tensor | None:
        """:return: Logarithm of the standard deviations of a Box's actions, without gradient; None for other spaces"""
        return self.log_std.detach() if isinstance(self.action_space, spaces.Box) else None

    @property
    def tilts(self) -> bool:
        """Whether actions are tilted by what attention gathered: with ``attention_q``, once it has earned it"""
        return self.attention_q is not None and self.attention_q.is_open

    def tilt(self, latents: th.Tensor, latent_pi: th.Tensor) -> Tilt | None:
        """
        :param latents: Of the trunk that is stepped while acting, [N, latent_dim]
        :param latent_pi: The actor's, [N, latent_dim_pi]
        :return: What to add to the parameters of the action distribution, None for nothing
        """
        if self.attention_q is None or not self.attention_q.is_open:
            return None
        return self.attention_q.tilt(latents, self.action_parameters(latent_pi), self.fixed_log_std())
