"""AttentionActorCritic: PPO's loss, an attention critic over trajectories, and a masked prediction beside it."""

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.checks import (
    check_auxiliary,
    check_buffer_arguments,
    check_integers,
    check_memory_options,
    check_policy,
    check_policy_arguments,
    check_rollout,
    check_same_network,
    check_spaces,
    explain_unexpected_argument,
    resolve_aux_loss,
    stored_network,
    warn_about_batch_size,
)
from sb3_attention_ac.history import RecentTrajectories
from sb3_attention_ac.policies import (
    AttentionActorCriticCnnPolicy,
    AttentionActorCriticMultiInputPolicy,
    AttentionActorCriticPolicy,
)
from sb3_attention_ac.updating import TrajectoryUpdate

BATCH_SIZE = 64  # PPO's
MEMORY_BATCH_SIZE = 256  # measured: docs/research.md
MASKED_COEF = 0.1
LIVE_COEF = 1.0  # with a tenth it teaches nothing: docs/research.md

SelfAttentionActorCritic = TypeVar("SelfAttentionActorCritic", bound="AttentionActorCritic")


class AttentionActorCritic(TrajectoryUpdate):
    """
    Attention Actor-Critic (AAC): an actor-critic whose critic attends to the trajectory.

    The policy loss is PPO's (https://arxiv.org/abs/1707.06347). The critic is a transformer encoder over the trajectory that
    starts as SB3's MLP critic, and is asked once per rollout instead of once per step. A masked prediction (leave a memory
    out, predict it from the rest) can be learned beside it.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0). Beside an
        MLP actor, attention's is larger by the square root of two, for minibatches twice as large.
    :param n_steps: The number of steps to run for each environment per update
        (i.e. rollout buffer size is n_steps * n_envs where n_envs is number of environment copies running in parallel)
    :param batch_size: Minibatch size in transitions; None for PPO's 64, with a memory actor 256 (at most the rollout), and its
        minibatches are rounded to whole chunks of windows: neighbouring steps say much the same thing
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
    :param aux_loss: The self-supervised loss: None, "contrastive" (find the key of the left-out observation), "value" (predict
        the left-out return-to-go), "prediction" (return-to-go, next observation, action and reward), "live" (the next reward
        and observation, from the past alone), or a list of targets ("return", "observation", "action", "reward",
        "contrastive", "live"). "auto": "live" with a memory actor, which it teaches what to remember, else None
    :param aux_coef: lambda, its coefficient in the loss, at least 0; None for 1.0 if it is "live" alone, else 0.1
    :param mask_ratio: About which share of the memories to leave out, in (0, 1)
    :param temperature: omega, temperature of the contrastive loss, greater than 0
    :param n_trajectories: How many of the most recent trajectories the self-supervised loss draws from, prior rollouts
        included; 0 for those of the last rollout. The actor-critic's losses stay on-policy.
    :raises ValueError: If an argument is out of range or does not go with the environment
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": AttentionActorCriticPolicy,
        "CnnPolicy": AttentionActorCriticCnnPolicy,
        "MultiInputPolicy": AttentionActorCriticMultiInputPolicy,
    }

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
    ):
        check_policy_arguments(policy, policy_kwargs)
        check_integers({"n_steps": (n_steps, 1), "n_epochs": (n_epochs, 1), "n_trajectories": (n_trajectories, 0)})
        env = maybe_make_env(env, verbose)
        if hasattr(env, "observation_space"):
            check_spaces(policy, env.observation_space, "features_extractor_class" in (policy_kwargs or {}))
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
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.aux_loss = aux_loss
        self.mask_ratio = mask_ratio
        self.temperature = temperature
        self.n_trajectories = n_trajectories
        self._n_iterations = 0
        given: Any = (batch_size, aux_coef)
        self.batch_size, self.aux_coef = given
        self._resolve_defaults()
        self._check_arguments()
        if _init_setup_model:
            self._setup_model()
            if not self.policy.memory_actor:
                check_memory_options(self.policy_kwargs, self.policy_class)

    # --- construction ---------------------------------------------------------------------------------------------------

    def _resolve_defaults(self) -> None:
        """Values for what was left open, here or as an argument of :meth:`load`; they depend on the kind of actor"""
        memory_actor = bool(self.policy_kwargs.get("memory_actor"))
        if self.batch_size is None:
            rollout = self.n_steps * (1 if self.env is None else self.n_envs)
            self.batch_size = min(MEMORY_BATCH_SIZE, rollout) if memory_actor else BATCH_SIZE
        if self.aux_loss == "auto":
            self.aux_loss = "live" if memory_actor and self.policy_kwargs.get("n_layers") != 0 else None
        if self.aux_coef is None:
            self.aux_coef = LIVE_COEF if resolve_aux_loss(self.aux_loss) == ("live",) else MASKED_COEF

    def _check_arguments(self) -> None:
        """:raises ValueError: If an argument is out of range or does not go with the others"""
        check_policy(self.policy_class, AttentionActorCriticPolicy)
        check_rollout(
            self.batch_size,
            self.n_steps,
            None if self.env is None else self.n_envs,
            self.normalize_advantage,
            self.rollout_buffer_class,
        )
        targets = resolve_aux_loss(self.aux_loss)
        n_layers = self.policy_kwargs.get("n_layers", 1)
        check_auxiliary(targets, self.aux_coef, self.mask_ratio, self.temperature, n_layers)
        if isinstance(self.clip_range_vf, (float, int)) and self.clip_range_vf <= 0:
            raise ValueError(
                f"clip_range_vf={self.clip_range_vf} was given, but it must be greater than 0, or None for no clipping."
            )

    def _setup_model(self) -> None:
        """Build the networks and the buffer: as in the parent class, but the policy first, the buffer needs its context."""
        self._resolve_defaults()
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self._make_policy().to(self.device)
        check_buffer_arguments(self.rollout_buffer_kwargs, self.policy.n_context)
        self.rollout_buffer_class = self.rollout_buffer_class or TrajectoryRolloutBuffer
        buffer_class: Any = self.rollout_buffer_class
        self.rollout_buffer = buffer_class(
            self.n_steps,
            self.observation_space,
            self.action_space,
            device=self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
            **{
                "n_context": self.policy.n_context,
                "chunk_length": self.policy.chunk_length,
                **self.rollout_buffer_kwargs,
            },
        )
        self.recent_trajectories = RecentTrajectories(self.n_trajectories)
        self.clip_range = FloatSchedule(self.clip_range)
        if self.clip_range_vf is not None:
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)
        chunk_length = self.rollout_buffer.chunk_length if self.policy.memory_actor else None
        warn_about_batch_size(self.batch_size, self.n_steps, self.n_envs, chunk_length)
        self._maybe_recommend_cpu("AttentionActorCriticPolicy")

    def _make_policy(self) -> Any:
        """
        :return: A new policy, on the CPU
        :raises ValueError: If it does not know one of ``policy_kwargs``
        """
        policy_class: Any = self.policy_class
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

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "recent_trajectories", "_log", "_steps"]

    # --- SB3's interface ----------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls: type[SelfAttentionActorCritic], path: Any, *args: Any, **kwargs: Any) -> SelfAttentionActorCritic:
        """
        Load the model from a zip-file, as in SB3.

        :param path: The zip-file
        :param args: As in :meth:`stable_baselines3.common.base_class.BaseAlgorithm.load`
        :param kwargs: Likewise
        :return: New model with the parameters of the file
        :raises ValueError: If network arguments are given that differ from those in the file; the message says which
        """
        if kwargs.get("aux_loss") == "auto":
            del kwargs["aux_loss"]  # as in the file
        stored = stored_network(path) if {"policy_kwargs", "aux_loss"} & kwargs.keys() else None
        if stored is not None:
            policy_kwargs = {name: value for name, value in stored.items() if name != "aux_loss"}
            aux_loss = kwargs.get("aux_loss", stored["aux_loss"])
            given = {**kwargs.get("policy_kwargs", policy_kwargs), "aux_loss": aux_loss}
            check_same_network(stored, given, AttentionActorCriticPolicy)
        return super().load(path, *args, **kwargs)

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto") -> None:
        """
        Load parameters from a zip-file or a dictionary, as in SB3.

        :param load_path_or_dict: The zip-file, or what :meth:`get_parameters` returned
        :param exact_match: Whether every parameter must be given
        :param device: Device to load to
        :raises ValueError: If they belong to a network with other arguments; the message says which
        """
        if not isinstance(load_path_or_dict, dict):
            given = {**self.policy_kwargs, "aux_loss": self.aux_loss}
            check_same_network(stored_network(load_path_or_dict), given, self.policy_class)
        super().set_parameters(load_path_or_dict, exact_match, device)

    def learn(
        self: SelfAttentionActorCritic,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "AAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfAttentionActorCritic:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)


AAC = AttentionActorCritic
