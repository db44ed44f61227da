"""AttentionActorCritic: PPO's loss, an attention critic over trajectories, and a self-supervised loss beside it."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_attention_ac import distributed, minibatch_sizes
from sb3_attention_ac.argument_names import explain_unexpected_argument, with_checked_names
from sb3_attention_ac.auxiliary.recent_trajectories import RecentTrajectories
from sb3_attention_ac.auxiliary.targets import resolve_aux_loss
from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.losses import NotFiniteError
from sb3_attention_ac.networks.distributions import forbids_actions
from sb3_attention_ac.optim import QuickAdam, clip_gradients
from sb3_attention_ac.policies import (
    AttentionActorCriticCnnPolicy,
    AttentionActorCriticMultiInputPolicy,
    AttentionActorCriticPolicy,
)
from sb3_attention_ac.rollout_validation import (
    check_buffer,
    check_buffer_arguments,
    check_rollout,
    warn_about_batch_size,
    warn_about_unused_buffer_methods,
)
from sb3_attention_ac.rollout_values import evaluate_rollout, update_gates
from sb3_attention_ac.saved_network import (
    check_same_network,
    check_same_parameters,
    stored_network,
    without_other_optimizer,
)
from sb3_attention_ac.train_log import TrainLog
from sb3_attention_ac.updates import Losses, UpdateSettings, update_class
from sb3_attention_ac.validation import (
    check_auxiliary,
    check_integers,
    check_log_barrier,
    check_memory_options,
    check_numbers,
    check_policy,
    check_policy_arguments,
    check_shape,
    check_spaces,
    warn_about_no_effect,
    warn_about_replaced_methods,
)

MASKED_COEF = 0.1
NEXT_STEP_COEF = 1.0  # with a tenth it teaches nothing

# SB3's and contrib's own policies, as scripts import them, and what they are here
SB3_POLICIES: dict[type[Any], str] = {
    policy: alias for algorithm in (PPO, MaskablePPO) for alias, policy in algorithm.policy_aliases.items()
}

SelfAttentionActorCritic = TypeVar("SelfAttentionActorCritic", bound="AttentionActorCritic")


class AttentionActorCritic(OnPolicyAlgorithm):
    """
    Attention Actor-Critic (AAC): PPO whose critic, and optionally its actor, attends to the trajectory.

    The policy loss is PPO's (https://arxiv.org/abs/1707.06347). The critic is a transformer encoder over the trajectory that
    starts as SB3's MLP critic, and is run once per rollout instead of once per step. By default the actor is SB3's MLP; with
    ``policy_kwargs=dict(memory_actor=True)`` it attends to the trajectory too. A masked prediction (leave a step out, predict
    it from the rest) can be learned as well.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0). With an
        MLP actor, attention learns with the square root of two times this, as its minibatches are twice as large.
    :param n_steps: The number of steps to run for each environment per update
        (i.e. rollout buffer size is n_steps * n_envs where n_envs is number of environment copies running in parallel)
    :param batch_size: Minibatch size in transitions; None for PPO's 64, with a memory actor 256 (at most the rollout), whose
        minibatches are rounded to whole chunks of steps, and larger because neighbouring steps are strongly correlated
    :param n_epochs: Number of epochs when optimizing the losses
    :param gamma: Discount factor
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param clip_range: Clipping parameter, it can be a function of the current progress remaining (from 1 to 0)
    :param clip_range_vf: Clipping parameter for the value function, it can be a function of the current progress remaining;
        None for no clipping. It depends on the reward scaling.
    :param normalize_advantage: Whether to normalize or not the advantage
    :param ent_coef: Entropy coefficient for the loss calculation
    :param vf_coef: Value function coefficient for the loss calculation
    :param max_grad_norm: The maximum value for the gradient clipping
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE) instead of action noise exploration
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE, -1 for once per rollout
    :param rollout_buffer_class: :class:`~sb3_attention_ac.buffers.TrajectoryRolloutBuffer` or a subclass, None for the former
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param target_kl: Stop updating the actor in this iteration when its KL divergence exceeds 1.5 times this; None for never
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation, see
        :class:`~sb3_attention_ac.policies.AttentionActorCriticPolicy`
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run; "auto" for the GPU if possible
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param aux_loss: The self-supervised loss: None, "contrastive" (find the key of the masked observation), "value" (predict
        the return from a masked step on, as the critic), "prediction" (that return, the next observation, action and reward),
        "next_step" (the next reward and observation, from the past alone), or a list of targets ("return", "observation",
        "action", "reward", "contrastive", "next_step"). "auto": "next_step" with a memory actor, which it teaches what to
        remember, else None
    :param aux_coef: Coefficient of the self-supervised loss (the mean of its terms), at least 0; None for 1.0 if it is
        "next_step" alone, else 0.1
    :param mask_ratio: About what share of the steps to mask, in (0, 1)
    :param temperature: Temperature of the contrastive loss (InfoNCE), greater than 0
    :param n_trajectories: How many of the most recent trajectories the self-supervised loss draws from, prior rollouts
        included; 0 for those of the last rollout. The actor-critic's losses stay on-policy.
    :param log_barrier_coef: Coefficient of the log barrier, KL(uniform || policy), for discrete actions
        (https://arxiv.org/abs/1908.00261). Unlike the entropy bonus's, its gradient does not vanish where the policy is nearly
        certain: actions that have never paid off are still tried. At least 0
    :raises ValueError: If an argument is out of range or does not go with the environment
    """

    policy: AttentionActorCriticPolicy
    rollout_buffer: TrajectoryRolloutBuffer
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": AttentionActorCriticPolicy,
        "CnnPolicy": AttentionActorCriticCnnPolicy,
        "MultiInputPolicy": AttentionActorCriticMultiInputPolicy,
    }

    @with_checked_names(AttentionActorCriticPolicy)
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int | None = None,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        aux_loss: str | Sequence[str] | None = "auto",
        aux_coef: float | None = None,
        mask_ratio: float = 0.25,
        temperature: float = 0.1,
        n_trajectories: int = 0,
        log_barrier_coef: float = 0.0,
    ):
        check_policy_arguments(policy, policy_kwargs)
        policy = policy if isinstance(policy, str) else SB3_POLICIES.get(policy, policy)
        check_integers({"n_steps": (n_steps, 1), "n_epochs": (n_epochs, 1), "n_trajectories": (n_trajectories, 0)})
        verbose = 0 if distributed.is_silent() else verbose
        env = maybe_make_env(env, verbose)
        if hasattr(env, "observation_space"):
            alias = policy if isinstance(policy, str) else ""
            own_policy = self.policy_aliases.get(alias) is not AttentionActorCritic.policy_aliases.get(alias)
            check_spaces(policy, env.observation_space, policy_kwargs or {}, own_policy)
            check_shape(env.action_space, "action")
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            device=device,
            seed=seed,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
        )
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.aux_loss = aux_loss
        self.aux_coef = aux_coef
        self.mask_ratio = mask_ratio
        self.temperature = temperature
        self.n_trajectories = n_trajectories
        self.log_barrier_coef = log_barrier_coef
        self.use_masking: bool | None = None
        self._default_batch_size: int | None = None  # what batch_size=None was taken for: load() may have other environments
        self._n_iterations = 0
        resolve_aux_loss(aux_loss)
        if _init_setup_model:
            self._setup_model()
            warn_about_no_effect(self.policy.aux_targets, aux_coef, mask_ratio, temperature, n_trajectories)
            if not self.policy.memory_actor:
                check_memory_options(self.policy_kwargs, self.policy_class)

    # --- construction ---------------------------------------------------------------------------------------------------

    def _setup_model(self) -> None:
        """Build the networks and the buffer: as in the parent class, but the policy first, the buffer needs its context."""
        distributed.start(self.device)
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self._make_policy()
        self.policy.use_action_dist()  # a subclass may have set another one
        check_buffer_arguments(self.rollout_buffer_kwargs, self.policy.architecture)
        self._resolve_defaults()
        architecture = self.policy.architecture
        buffer_class: Any = self.rollout_buffer_class or TrajectoryRolloutBuffer
        warn_about_unused_buffer_methods(buffer_class)
        self.rollout_buffer_class = buffer_class
        self.rollout_buffer = buffer_class(
            self.n_steps,
            self.observation_space,
            self.action_space,
            device=self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
            **{
                "n_context": architecture.n_context,
                "chunk_length": self.policy.chunk_length,
                "n_landmarks": architecture.n_landmarks,
                "landmark_rule": architecture.landmark_rule,
                "held_noise": self.use_sde and not self.policy.memory_actor,
                **self.rollout_buffer_kwargs,
            },
        )
        self.policy.chunk_length = self.rollout_buffer.chunk_length  # predict() sees as far back as training
        self.policy = self.policy.to(self.device)
        self._statistics = distributed.MergedStatistics(None)
        self.recent_trajectories = RecentTrajectories(self.n_trajectories)
        self.clip_range = FloatSchedule(self.clip_range)
        if self.clip_range_vf is not None:
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)
        chunk_length = self.rollout_buffer.chunk_length if self.policy.memory_actor else None
        if self.batch_size is not None and self.batch_size != self._default_batch_size:
            warn_about_batch_size(self.batch_size, self.n_steps, self.n_envs, chunk_length)
        self._maybe_recommend_cpu("AttentionActorCriticPolicy")

    def set_random_seed(self, seed: int | None = None) -> None:
        """:param seed: Seed of the pseudo-random generators; under ``torchrun`` every environment has one of its own"""
        n_envs = self.n_envs if self.env is not None else 1
        super().set_random_seed(None if seed is None else seed + distributed.rank() * n_envs)

    def _make_policy(self) -> Any:
        """
        :return: A new policy, on the CPU
        :raises ValueError: If it is none of ours, or does not know one of ``policy_kwargs``
        """
        policy_class: Any = self.policy_class  # load() sets that of the file
        check_policy(policy_class, AttentionActorCriticPolicy)
        try:
            return policy_class(
                self.observation_space,
                self.action_space,
                self.lr_schedule,
                use_sde=self.use_sde,
                aux_targets=resolve_aux_loss(self.aux_loss),
                temperature=self.temperature,
                **self.policy_kwargs,
            )
        except TypeError as error:
            explain_unexpected_argument(error, self.policy_kwargs, policy_class, AttentionActorCritic)
            raise

    def _resolve_defaults(self) -> None:
        """
        Values for what was left open, here or as an argument of :meth:`load`; they depend on the kind of actor.

        :raises ValueError: If an argument is out of range or does not go with the others
        """
        architecture, targets = self.policy.architecture, self.policy.aux_targets
        check_numbers(vars(self))
        if self.sde_sample_freq != -1:
            check_integers({"sde_sample_freq": (self.sde_sample_freq, 1)})
        check_auxiliary(targets, self.aux_coef, architecture)
        check_log_barrier(self.log_barrier_coef, self.policy.distribution)
        n_envs = None if self.env is None else self.n_envs
        if self.batch_size is None or (n_envs is not None and self.batch_size == self._default_batch_size):
            self.batch_size = architecture.default_batch_size
            if self.policy.memory_actor:
                longest = self.rollout_buffer_kwargs.get("chunk_length", self.policy.chunk_length)
                length = minibatch_sizes.chunk_length(self.n_steps, longest)
                self.batch_size = minibatch_sizes.whole_chunks(self.batch_size, self.n_steps, n_envs or 1, length)
            self._default_batch_size = self.batch_size
        if self.aux_loss == "auto":
            self.aux_loss = list(targets) or None
        if self.aux_coef is None and targets:
            self.aux_coef = NEXT_STEP_COEF if targets == ("next_step",) else MASKED_COEF
        check_rollout(self.batch_size, self.n_steps, n_envs, self.normalize_advantage, self.rollout_buffer_class)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "recent_trajectories", "_statistics"]

    # --- collecting -----------------------------------------------------------------------------------------------------

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
        use_masking: bool | None = None,
    ) -> bool:
        """
        Collect experiences with the actor alone, then ask the critic about all of them at once.

        :param env: The training environment
        :param callback: Callback that will be called at each step (and at the beginning and end of the rollout)
        :param rollout_buffer: Buffer to fill with rollouts
        :param n_rollout_steps: Number of experiences to collect per environment
        :param use_masking: Whether to take action masks from the environment; None for what :meth:`learn` was told
        :return: True if function returned with at least `n_rollout_steps` collected, False if callback terminated rollout
            prematurely.
        """
        assert self._last_obs is not None and self._last_episode_starts is not None, "No previous observation was provided"
        check_buffer(rollout_buffer, n_rollout_steps, env.num_envs, self.policy.architecture)
        assert isinstance(rollout_buffer, TrajectoryRolloutBuffer)
        self.policy.set_training_mode(False)
        n_steps = 0
        rollout_buffer.reset()
        self.policy.chunk_length = rollout_buffer.chunk_length  # it may have another size by now
        if self.use_sde:
            self._sample_noise(rollout_buffer)
        if use_masking is None:
            use_masking = forbids_actions(env) if self.use_masking is None else self.use_masking
        masks = action_masks = None
        values: th.Tensor | None = None  # none before the end of the rollout
        callback.on_rollout_start()
        warn_about_replaced_methods(self.policy)
        act = self.policy.start_acting(rollout_buffer)

        while n_steps < n_rollout_steps:
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self._sample_noise(rollout_buffer)
            obs_tensor = obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
            if use_masking:
                action_masks = get_action_masks(env)
                masks = self.policy.checked_masks(action_masks, obs_tensor)
            with self.policy.acting_mode():
                output = act(obs_tensor, self._last_episode_starts, masks)
            # A copy: tensors of inference mode are of no use to callbacks
            actions, log_probs = output.actions.cpu().numpy(), output.log_prob.clone()
            clipped_actions = self.policy.actions_for_env(actions)
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            self.num_timesteps += env.num_envs * distributed.world_size()

            # Give access to local variables
            callback.update_locals(locals())
            continue_training = callback.on_step()
            # Only what there is: a subclass of the buffer may have SB3's signature
            more = {"action_masks": masks, "logit_offsets": output.logit_offsets, "surprise": output.surprise}
            more = {name: tensor for name, tensor in more.items() if tensor is not None}
            rollout_buffer.add(self._last_obs, actions, rewards, self._last_episode_starts, None, log_probs, **more)
            self._last_obs = new_obs  # type: ignore[assignment]  # as in SB3: VecEnv also allows tuples, we do not
            self._last_episode_starts = dones
            if not continue_training:
                return self._all_continue(False)  # the others ask at the end of their rollouts
            self._update_info_buffer(infos, dones)
            n_steps += 1
            for idx in np.flatnonzero(dones):
                terminal_obs = infos[idx].get("terminal_observation")
                if terminal_obs is not None and infos[idx].get("TimeLimit.truncated", False):
                    rollout_buffer.add_terminal_observation(int(idx), terminal_obs)

        if not self._all_continue(True):
            return False
        rollout = evaluate_rollout(self.policy, rollout_buffer, new_obs)
        values = rollout.last.values.unsqueeze(1)  # [n_envs, 1]; SB3's name, for callbacks
        rollout_buffer.set_values(rollout.values, rollout.mlp_values, rollout.terminal.values.cpu().numpy())
        rollout_buffer.compute_returns_and_advantage(values, dones)
        for name, value in update_gates(self.policy, rollout_buffer, rollout, dones).items():
            self.logger.record(f"rollout/{name}", value)
        callback.update_locals(locals())
        callback.on_rollout_end()
        rollout_buffer.reload()
        return True

    def _all_continue(self, wanted: bool) -> bool:
        """:return: Whether all processes want to; each asks once per rollout, and then has the statistics of all"""
        agreed = distributed.all_agree(wanted)
        self._statistics.merge()
        return agreed

    def _sample_noise(self, rollout_buffer: TrajectoryRolloutBuffer) -> None:
        self.policy.reset_noise(rollout_buffer.n_envs)
        rollout_buffer.start_noise()

    # --- learning -------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Update the policy using the currently gathered rollout buffer."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        if self.policy.masked_prediction is not None:
            self.policy.sync_key_encoder()
            self.recent_trajectories.add(self.rollout_buffer)
        gate = self.policy.value_gate
        settings = self._update_settings()
        log = TrainLog(settings.clip_range, logs_attention=gate is None or not gate.is_closed)
        update = self._make_update(settings, log)
        adam = QuickAdam(self.policy.optimizer)
        self._n_iterations += 1
        # train for n_epochs epochs
        for epoch in range(self.n_epochs):
            log.start_epoch()
            for batch in update.minibatches(epoch):
                losses = update.losses(batch)
                if self.target_kl is not None and "policy_gradient_loss" in losses:
                    kl = distributed.mean(log.last_kl())
                    if kl > 1.5 * self.target_kl:
                        update.continue_training = False
                        if self.verbose >= 1:
                            print(f"Early stopping at step {epoch} due to reaching max kl: {kl:.2f}")
                        continue
                self._optimize(losses, adam, log)
            self._n_updates += 1
            if update.is_done:
                break

        distributed.require_identical(adam.parameters)
        log.record(self.logger, self.rollout_buffer.values, self.rollout_buffer.returns)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", settings.clip_range)
        if settings.clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", settings.clip_range_vf)

    def _make_update(self, settings: UpdateSettings, log: TrainLog) -> Any:
        """:return: Minibatches of the rollout and their losses; for losses of your own, a subclass with another ``losses``"""
        return update_class(self.policy)(self.policy, self.rollout_buffer, self.recent_trajectories, settings, log)

    def _optimize(self, losses: Losses, adam: QuickAdam, log: TrainLog) -> None:
        """
        One step of the optimizer.

        :param losses: The terms of the loss, weighted
        :param adam: Takes the step
        :param log: Where to note it
        :raises NotFiniteError: If one is not finite; the parameters are then still the last good ones
        """
        loss = th.stack(list(losses.values())).sum()
        adam.zero_grad()
        if loss.requires_grad:  # not where everything it could teach is frozen
            loss.backward()
        distributed.average_gradients(adam.parameters)
        grad_norm = clip_gradients(adam.parameters, self.max_grad_norm)
        if not math.isfinite(loss.detach() + grad_norm):
            culprit = next((name for name, term in losses.items() if not th.isfinite(term)), "the gradient")
            raise NotFiniteError(
                f"{culprit} is not finite at iteration {self._n_iterations} "
                f"({self.num_timesteps} timesteps): training stopped before the optimizer step, so parameters are the last "
                "good ones and the model can be saved. Check rewards and observations for NaN or infinity, or use a smaller "
                "learning_rate."
            )
        adam.step()
        if self.policy.value_gate is not None and "attention_value_loss" in losses:
            self.policy.value_gate.n_steps += 1
        log.add("loss", loss)
        if "policy_gradient_loss" not in losses or self.policy.memory_actor:  # a minibatch that attention learns from
            log.add("attention_grad_norm", grad_norm)
            self.policy.update_key_encoder()

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        super()._update_learning_rate(optimizers)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            for group in optimizer.param_groups:
                group["lr"] *= group.get("lr_scale", 1.0)  # of the groups that the policy made

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        """As in SB3, but never below zero: the last rollout passes the total, and a negative learning rate unlearns."""
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)

    def _update_settings(self) -> UpdateSettings:
        progress = self._current_progress_remaining
        clip_range_vf = None if self.clip_range_vf is None else FloatSchedule(self.clip_range_vf)(progress)
        assert self.batch_size is not None
        return UpdateSettings(
            self.batch_size,
            FloatSchedule(self.clip_range)(progress),  # a number, where one was put in later
            clip_range_vf,
            self.normalize_advantage,
            self.ent_coef,
            self.vf_coef,
            self.aux_coef or 0.0,
            self.mask_ratio,
            self.log_barrier_coef,
        )

    def learn(
        self: SelfAttentionActorCritic,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "AAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        use_masking: bool | None = None,
    ) -> SelfAttentionActorCritic:
        """
        :param total_timesteps: The total number of samples (env steps) to train on
        :param callback: Callback(s) called at every step with state of the algorithm
        :param log_interval: The number of iterations before logging
        :param tb_log_name: The name of the run for TensorBoard logging
        :param reset_num_timesteps: Whether or not to reset the current timestep number (used in logging)
        :param progress_bar: Display a progress bar using tqdm and rich
        :param use_masking: Whether to take action masks from the environment (as MaskablePPO does); None: if it has any
        :return: The trained model
        :raises ValueError: If masks are asked for, and the environment has none
        """
        assert self.env is not None, "No environment was given: pass env to the constructor, to load() or to set_env()"
        if use_masking and not is_masking_supported(self.env):
            raise ValueError("Environment does not support action masking. Consider using ActionMasker wrapper")
        self.use_masking = forbids_actions(self.env) if use_masking is None else use_masking
        self._join_others()
        callback = distributed.callbacks_of(callback, progress_bar)
        progress_bar = progress_bar and not distributed.is_active()
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def _join_others(self) -> None:
        """Start from the parameters of rank 0, which alone logs; see :mod:`~sb3_attention_ac.distributed`."""
        same = "n_envs n_steps batch_size n_epochs gamma gae_lambda normalize_advantage"
        same += " use_masking ent_coef vf_coef max_grad_norm target_kl aux_coef mask_ratio n_trajectories log_barrier_coef"
        distributed.require_equal(**{name: getattr(self, name) for name in same.split()})
        self.num_timesteps = distributed.maximum(self.num_timesteps)  # where a callback has stopped, one has counted less
        distributed.broadcast(self.policy)
        self._statistics = distributed.MergedStatistics(self._vec_normalize_env)
        self._statistics.start_from_first()
        if distributed.rank() > 0:
            self.verbose = 0
            self.set_logger(Logger(None, []))  # TensorBoard's too, and one that the script has set

    # --- SB3's interface --------------------------------------------------------------------------------------------------

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """As :meth:`sb3_attention_ac.policies.AttentionActorCriticPolicy.predict`"""
        if self.use_masking and action_masks is None:
            warnings.warn(
                "This agent was trained with action masks, and predict() got none: it may take actions that are not allowed. "
                "Pass action_masks=get_action_masks(env); sb3_contrib's evaluate_policy and MaskableEvalCallback do.",
                stacklevel=2,
            )
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

    def save(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """
        Save the model in a zip-file, as in SB3; of several processes (``torchrun``), rank 0 does.

        :param path: The zip-file
        :param args: As in :meth:`stable_baselines3.common.base_class.BaseAlgorithm.save`
        :param kwargs: Likewise
        """
        if distributed.rank() == 0:  # all write to one path
            super().save(path, *args, **kwargs)

    @classmethod
    def load(cls: type[SelfAttentionActorCritic], path: Any, *args: Any, **kwargs: Any) -> SelfAttentionActorCritic:
        """
        Load the model from a zip-file, as in SB3. Like SB3's, it runs code that the file may hold: load only files you trust.

        :param path: The zip-file
        :param args: As in :meth:`stable_baselines3.common.base_class.BaseAlgorithm.load`
        :param kwargs: Likewise
        :return: New model with the parameters of the file
        :raises ValueError: If network arguments are given that differ from those in the file; the message says which
        """
        if kwargs.get("aux_loss") == "auto":
            del kwargs["aux_loss"]  # as in the file
        if "batch_size" in kwargs:
            kwargs["_default_batch_size"] = None
        stored = stored_network(path) if {"policy_kwargs", "aux_loss", "use_sde"} & kwargs.keys() else None
        if stored is not None:
            check_same_network(stored, {**stored, **kwargs}, AttentionActorCriticPolicy)
        return super().load(path, *args, **kwargs)

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto") -> None:
        """
        Load parameters from a zip-file or a dictionary, as in SB3. Only tensors are read: no code that a file may hold is run.

        :param load_path_or_dict: The zip-file, or what :meth:`get_parameters` returned
        :param exact_match: Whether every parameter must be given. If not, it may be a file of PPO: an MLP actor and the MLP of
            its critic go on from there
        :param device: Device to load to
        :raises ValueError: If they belong to a network with other arguments; the message says which
        """
        if not isinstance(load_path_or_dict, dict):
            given = {"policy_kwargs": self.policy_kwargs, "aux_loss": self.aux_loss, "use_sde": self.use_sde}
            check_same_network(stored_network(load_path_or_dict), given, self.policy_class)
            _, load_path_or_dict, _ = load_from_zip_file(load_path_or_dict, device=device, load_data=False)
        if "policy" in load_path_or_dict:
            check_same_parameters(load_path_or_dict["policy"], self.policy.state_dict(), exact_match)
        if not exact_match:
            load_path_or_dict = without_other_optimizer(load_path_or_dict, self.get_parameters())
        super().set_parameters(load_path_or_dict, exact_match, device)


AAC = AttentionActorCritic
