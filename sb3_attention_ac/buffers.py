"""
The trajectory rollout buffer: transitions go in step by step, shuffled transitions and windows of trajectories come out.

No hidden states are stored, so none goes stale: what a window needs is recomputed from raw steps.
"""

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.buffers import MaskableRolloutBufferSamples
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_attention_ac import minibatch_sizes
from sb3_attention_ac.gae import generalized_advantages
from sb3_attention_ac.landmarks import LandmarkStorage, check_rule, landmarks_after
from sb3_attention_ac.step_storage import RolloutTensors, StepStorage
from sb3_attention_ac.type_aliases import TrajectoryWindows, TransitionSamples, WindowSamples, map_obs, split_batch


class TrajectoryRolloutBuffer(RolloutBuffer):
    """
    Rollout buffer that keeps trajectories together, for array and Dict observations.

    :param buffer_size: Number of steps per environment in one rollout (``n_steps``)
    :param observation_space: Observation space
    :param action_space: Action space
    :param device: PyTorch device to which the values will be converted
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param gamma: Discount factor
    :param n_envs: Number of parallel environments
    :param n_context: How many steps before a chunk of steps are handed out as its context, at least 0
    :param chunk_length: How many consecutive steps of a rollout are handed out together at most, at least 1. Chunks are of
        one length, or as equal as can be: the steps of a much shorter one would weigh more, as its minibatches are smaller.
    :param held_noise: Whether actions are sampled with noise that is held for some steps (gSDE), see :meth:`start_noise`
    :param n_landmarks: How many earlier steps of its episode are put before each window, at least 0
    :param landmark_rule: Which ones: "first", or "surprise" (:meth:`add` is then told how unexpected each step was)
    """

    mlp_values: np.ndarray
    episode_ids: np.ndarray
    surprises: np.ndarray
    terminal_observations: dict[tuple[int, int], Any]
    terminal_values: np.ndarray

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
        n_context: int = 32,
        chunk_length: int = 32,
        held_noise: bool = False,
        n_landmarks: int = 0,
        landmark_rule: str = "first",
    ):
        if n_context < 0 or chunk_length < 1:
            raise ValueError(
                f"n_context={n_context} and chunk_length={chunk_length} were given, "
                "but n_context must be at least 0 and chunk_length at least 1."
            )
        check_rule(landmark_rule)
        self.n_context, self.longest_chunk = n_context, chunk_length
        self.held_noise = held_noise
        self.n_landmarks, self.landmark_rule = n_landmarks, landmark_rule
        self._storage: StepStorage | None = None
        self._landmarks: LandmarkStorage | None = None
        self._tensors: RolloutTensors | None = None
        self._targets: dict[str, th.Tensor | None] = {}
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    # --- filling --------------------------------------------------------------------------------------------------------

    @property
    def storage(self) -> StepStorage:
        """The raw steps"""
        assert self._storage is not None, "reset() was not called yet"
        return self._storage

    def reset(self) -> None:
        """
        Start a new rollout; the last steps of the one before stay as context, unless ``buffer_size`` or ``n_envs`` have been
        changed.
        """
        self.chunk_length = minibatch_sizes.chunk_length(self.buffer_size, self.longest_chunk)
        self.n_history = self.n_context + 1 + (self.chunk_length if self.n_landmarks > 0 else 0)
        sizes = (self.n_history, self.buffer_size, self.n_envs)
        if self._storage is None or self._storage.sizes != sizes:
            spaces_ = self.observation_space, self.action_space
            self._storage = StepStorage(*sizes, *spaces_, self.held_noise, self.landmark_rule == "surprise")
            if self.n_landmarks > 0:
                self._landmarks = LandmarkStorage(self._storage, self.n_landmarks, self.n_context, self.chunk_length)
        elif self.pos > 0:
            if self._landmarks is not None:
                self._landmarks.start_rollout(self.pos)
            self._storage.start_rollout(self.pos)
        vars(self).update(self._storage.rollout())  # public views: observations, actions, rewards, episode_starts, ...
        shape = (self.buffer_size, self.n_envs)
        for name in ("values", "mlp_values", "log_probs", "advantages", "returns"):
            setattr(self, name, np.zeros(shape, dtype=np.float32))
        self.logit_offsets: np.ndarray | None = None
        self.action_masks: np.ndarray | None = None
        self.terminal_observations, self.terminal_values = {}, np.zeros(0, dtype=np.float32)
        self._tensors, self._targets = None, {}
        self.pos, self.full = 0, False

    def start_noise(self) -> None:
        """Say that the actions of the steps to come are sampled with a new noise (gSDE)."""
        self.storage.noise_id += 1

    def add(
        self,
        obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor | None = None,
        log_prob: th.Tensor | None = None,
        action_masks: th.Tensor | None = None,
        logit_offsets: th.Tensor | None = None,
        surprise: th.Tensor | None = None,
    ) -> None:
        """
        Store one step of every environment.

        :param obs: Observation s_t, an array or a dictionary of arrays
        :param action: Action a_t
        :param reward: Reward r_t, as the environment gave it
        :param episode_start: Whether s_t is the first step of its episode
        :param value: Not needed: the values of the whole rollout are set at its end (:meth:`set_values`)
        :param log_prob: log pi(a_t | h_t) of the policy that acted, [n_envs]
        :param action_masks: True where an action was allowed, [n_envs, mask_dim]
        :param logit_offsets: What Q_att added to logits or means, [n_envs, n_parameters]
        :param surprise: How unexpected s_t was, [n_envs]; needed by the rule "surprise"
        """
        self._take_over()
        self.storage.add(self.pos, obs, action, reward, episode_start)
        if self.landmark_rule == "surprise":
            if surprise is None:
                raise ValueError("landmark_rule='surprise' needs to be told surprise=..., how unexpected each step was.")
            self.surprises[self.pos] = surprise.cpu().numpy()
        if value is not None:
            self.values[self.pos] = self.mlp_values[self.pos] = value.detach().cpu().numpy().flatten()
        if log_prob is not None:
            self.log_probs[self.pos] = log_prob.detach().cpu().numpy().flatten()
        if action_masks is not None:
            self._store_optional("action_masks", action_masks)
        if logit_offsets is not None:
            self._store_optional("logit_offsets", logit_offsets)
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def _store_optional(self, name: str, tensor: th.Tensor) -> None:
        """One step of what not every rollout has; zeros (nothing) for the steps before"""
        array = tensor.detach().cpu().numpy()
        if getattr(self, name) is None:
            setattr(self, name, np.zeros((self.buffer_size, *array.shape), dtype=array.dtype))
        getattr(self, name)[self.pos] = array

    def add_terminal_observation(self, env: int, obs: Any) -> None:
        """
        Remember the observation on which an episode was cut off by a time limit, for the value of what would have followed.
        Call it after :meth:`add` of the episode's last step.

        :param env: Index of the environment
        :param obs: Its ``terminal_observation``
        """
        self.terminal_observations[self.pos - 1, env] = map_obs(np.array, obs)  # a copy: environments may use it again

    def set_values(
        self, values: np.ndarray, mlp_values: np.ndarray | None = None, terminal_values: np.ndarray | None = None
    ) -> None:
        """
        :param values: V(h_t) before any update, [buffer_size, n_envs]
        :param mlp_values: The part of them that learns from transitions, V_mlp(s_t), [buffer_size, n_envs]; None for all
        :param terminal_values: Values of :attr:`terminal_observations`, in their order; None to count them as zero
        """
        self.values[:] = values
        self.mlp_values[:] = values if mlp_values is None else mlp_values
        if terminal_values is not None:
            self.terminal_values = terminal_values

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        """
        GAE(lambda) as in SB3. An episode cut off by a time limit did not end: the value of its last observation is added to
        its last reward (see https://github.com/DLR-RM/stable-baselines3/issues/633). :attr:`rewards` stay without it.

        :param last_values: Values of the observations after the last step, one for each env
        :param dones: Whether the last step ended an episode, one for each env
        """
        last = last_values.detach().cpu().numpy().flatten()
        self.advantages = self.advantages_under(self.values, last, dones, self.terminal_values)
        self.returns = self.advantages + self.values
        self._targets = {}

    def advantages_under(
        self, values: np.ndarray, last_values: np.ndarray, dones: np.ndarray, terminal_values: np.ndarray
    ) -> np.ndarray:
        """
        :param values: Of the rollout's steps, [buffer_size, n_envs]
        :param last_values: Of the observations after the last step, [n_envs]
        :param dones: Whether the last step ended an episode, [n_envs]
        :param terminal_values: Of :attr:`terminal_observations`, in their order
        :return: Advantages under these values, [buffer_size, n_envs]
        """
        rewards = self.rewards
        if len(terminal_values) > 0:
            steps, envs = np.array(list(self.terminal_observations)).T
            rewards = rewards.copy()  # rewards stay as the environment gave them: the encoder reads them
            rewards[steps, envs] += self.gamma * terminal_values
        return generalized_advantages(rewards, values, last_values, self.episode_starts, dones, self.gamma, self.gae_lambda)

    # --- reading --------------------------------------------------------------------------------------------------------

    def tensors(self) -> RolloutTensors:
        """:return: The rollout on the device; transferred once"""
        if self._tensors is None:
            self._take_over()
            landmarks = None if self._landmarks is None else self._landmarks.tensors(self.device, self.pos)
            self._tensors = self.storage.tensors(self.device)._replace(landmarks=landmarks)
        return self._tensors

    def reload(self) -> None:
        """Read again what was collected, when it is needed: a callback may have changed or replaced arrays."""
        self._take_over()
        self._tensors, self._targets = None, {}

    def _take_over(self) -> None:
        """Where a callback or a subclass has put an array of its own in the place of a view: its numbers count, as in PPO."""
        if self.storage.take_over(vars(self)):
            vars(self).update(self.storage.rollout())

    def target(self, name: str) -> th.Tensor | None:
        """
        :param name: One of the arrays set at the end of the rollout
        :return: That on the device, [buffer_size, n_envs, ...]; transferred once. None where there is none
        """
        if name not in self._targets:
            array = getattr(self, name)
            self._targets[name] = None if array is None else self.to_torch(array)
        return self._targets[name]

    def chunks(self) -> list[tuple[np.ndarray, int]]:
        """
        Cut the step axis into chunks of ``chunk_length``; the last one may be shorter.

        :return: (first steps, length) for each length that occurs, longest first
        """
        n_whole, rest = divmod(self.buffer_size, self.chunk_length)
        whole = [(np.arange(n_whole) * self.chunk_length, self.chunk_length)]
        return whole + ([(np.array([n_whole * self.chunk_length]), rest)] if rest else [])

    def of_each_env(self, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        :param starts: First steps of chunks
        :return: First step and environment of each chunk of every environment, [len(starts) * n_envs] each
        """
        return np.repeat(starts, self.n_envs), np.tile(np.arange(self.n_envs), len(starts))

    def windows(self, starts: np.ndarray, envs: np.ndarray, length: int) -> tuple[TrajectoryWindows, th.Tensor]:
        """
        :param starts: First step of each chunk, [N]
        :param envs: Environment of each chunk, [N]
        :param length: Length of the chunks, n
        :return: Windows of n_landmarks + n_context + n steps, and the actions of the chunks, [N, n, action_dim]
        """
        steps, env = self._grid(starts, envs, length)
        context = th.arange(-self.n_context, 0, device=self.device)
        rows = self.n_history + th.cat([steps[:, :1] + context, steps], dim=1)  # [N, n_context + n]
        data = self.tensors()
        return data.windows(rows, env, steps[:, :1] // self.chunk_length), data.actions[self.n_history + steps, env]

    def context(self) -> TrajectoryWindows:
        """:return: Landmarks, the last n_context steps before this rollout, and the step to come, still without observation"""
        row = self.n_history
        envs = th.arange(self.n_envs, device=self.device).unsqueeze(1)
        rows = th.arange(row - self.n_context, row + 1, device=self.device).expand(self.n_envs, -1)  # [n_envs, n_context + 1]
        self.storage.expect(0)
        data = self.storage.tensors(self.device, row + 1)
        if self._landmarks is not None:
            data = data._replace(landmarks=self._landmarks.tensors(self.device, 0))
        return data.windows(rows, envs, th.zeros_like(envs))

    def _grid(self, starts: np.ndarray, envs: np.ndarray, length: int) -> tuple[th.Tensor, th.Tensor]:
        """:return: The steps [N, length] and the environments [N, 1] of chunks"""
        first = th.as_tensor(starts, device=self.device).unsqueeze(1)
        return first + th.arange(length, device=self.device), th.as_tensor(envs, device=self.device).unsqueeze(1)

    def bootstrap_windows(self, steps: np.ndarray, envs: np.ndarray, observations: Any) -> TrajectoryWindows:
        """
        Windows that end with an observation that was not acted upon, each after the steps of its own episode.

        :param steps: Last step before each observation, [N]
        :param envs: Environment of each observation, [N]
        :param observations: The observations, [N, *obs_shape]
        :return: Windows of n_landmarks + n_context + 1 steps
        """
        env = th.as_tensor(envs, device=self.device).unsqueeze(1)  # [N, 1]
        last = th.as_tensor(steps, device=self.device).unsqueeze(1) + self.n_history  # [N, 1]
        # The last step twice: what follows it is of the same episode, and takes the place of the second
        rows = last + th.arange(1 - self.n_context, 2, device=self.device).clamp(max=0)  # [N, n_context + 1]
        data = self.tensors()
        windows = data.windows(rows, env)

        def put_last(window: th.Tensor, obs: np.ndarray) -> None:
            window[:, -1] = self.to_torch(obs).reshape(window[:, -1].shape)

        map_obs(put_last, windows.observations, observations)
        windows.previous_actions[:, -1:] = data.actions[last, env]
        windows.previous_rewards[:, -1:] = data.rewards[last, env]
        windows.episode_starts[:, -1] = False
        windows.ages[:, -1] += 1
        if windows.noise_ids is not None:
            windows.noise_ids[:, -1] += 1  # no action with the last one follows: nothing has to be hidden
        return windows if data.landmarks is None else windows.after(self._landmarks_after(last, env))

    def _landmarks_after(self, last: th.Tensor, env: th.Tensor) -> TrajectoryWindows:
        """:return: Landmarks of windows whose context ends with the rows ``last`` of the environments ``env``, [N, 1] each"""
        data = self.tensors()
        assert data.landmarks is not None
        chunk = (last - self.n_history) // self.chunk_length
        begin = self.n_history + chunk * self.chunk_length - self.n_context
        rows = begin + th.arange(self.chunk_length, device=self.device)  # [N, C]
        leaving = data.windows(rows.clamp(max=len(data.rewards) - 1), env)
        landmarks = data.landmarks.map(lambda part: part[chunk[:, 0], env[:, 0]])
        return landmarks_after(landmarks, leaving, rows <= last - self.n_context, data.episode_ids[last, env])

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """
        Shuffled transitions, as in SB3, or with action masks as in contrib.

        :param batch_size: Transitions in a minibatch, None for all at once
        """
        return (_as_sb3s(samples) for samples in self.get_transitions(batch_size))

    def get_transitions(self, batch_size: int | None = None) -> Generator[TransitionSamples, None, None]:
        """
        Shuffled transitions.

        :param batch_size: Transitions in a minibatch, None for all at once
        """
        assert self.full, "The rollout is not complete yet"
        n_transitions = self.buffer_size * self.n_envs
        envs, steps = np.divmod(np.random.permutation(n_transitions), self.buffer_size)  # SB3's order, and so its minibatches
        samples = self.transition_samples(th.as_tensor(steps * self.n_envs + envs, device=self.device))
        yield from split_batch(samples, batch_size or n_transitions)

    def transition_samples(self, indices: th.Tensor) -> TransitionSamples:
        """
        :param indices: Which transitions, step * n_envs + environment, [N]
        :return: These transitions
        """
        data, rows = self.tensors(), indices + self.n_history * self.n_envs
        targets: Any = self._targets_of("mlp_values", lambda array: array.flatten(0, 1)[indices])
        observations: Any = map_obs(lambda obs: obs.flatten(0, 1)[rows], data.observations)  # [R, E, ...] -> [R * E, ...]
        return TransitionSamples(observations, data.actions.flatten(0, 1)[rows], *targets)

    def _targets_of(self, values: str, select: Callable[[th.Tensor], th.Tensor]) -> list[th.Tensor | None]:
        """What the losses need, in the order of the samples' fields; None for what this rollout does not have"""
        names = (values, "log_probs", "advantages", "returns", "action_masks", "logit_offsets")
        return [None if (array := self.target(name)) is None else select(array) for name in names]

    def _get_samples(self, batch_inds: Any, env: VecNormalize | None = None) -> RolloutBufferSamples:
        return _as_sb3s(self.transition_samples(th.as_tensor(batch_inds)))

    def get_windows(
        self, batch_size: int | None = None, random: np.random.RandomState | None = None
    ) -> Generator[WindowSamples, None, None]:
        """
        Shuffled chunks with their context. All windows of a minibatch have the same length.

        :param batch_size: Steps that count in a minibatch, rounded to whole chunks (at least one); None for all at once
        :param random: What to shuffle with, None for NumPy's random stream
        """
        assert self.full, "The rollout is not complete yet"
        permutation = np.random.permutation if random is None else random.permutation
        minibatches: list[WindowSamples] = []
        chunks = self.chunks()
        for starts, length in chunks:
            first, env = self.of_each_env(starts)
            order = permutation(len(first))
            n_windows = len(order) if batch_size is None else max(batch_size // length, 1)
            minibatches += split_batch(self.window_samples(first[order], env[order], length), n_windows)
        if len(chunks) > 1:  # the shorter ones at any place: who takes the first ones alone shall see all steps
            minibatches = [minibatches[i] for i in permutation(len(minibatches))]
        yield from minibatches

    def window_samples(self, starts: np.ndarray, envs: np.ndarray, length: int) -> WindowSamples:
        """
        :param starts: First step of each chunk, [N]
        :param envs: Environment of each chunk, [N]
        :param length: Length of the chunks
        :return: The windows and what the losses need of them
        """
        windows, actions = self.windows(starts, envs, length)
        steps, env = self._grid(starts, envs, length)
        targets: Any = self._targets_of("values", lambda array: array[steps, env])
        return WindowSamples(windows, actions, *targets)


def _as_sb3s(samples: TransitionSamples) -> RolloutBufferSamples:
    """:return: The same, as SB3 and with action masks contrib name them"""
    fields: Any = samples
    if samples.action_masks is not None:
        return MaskableRolloutBufferSamples(*fields[:7])  # type: ignore[return-value]
    return RolloutBufferSamples(*fields[:6])
