"""
The trajectory rollout buffer: memories go in step by step, transitions and windows of trajectories come out.

Layout: the step axis holds the last ``n_context + 1`` steps of the rollout before, then the ``buffer_size`` steps of this one:

    row:   0        1 ... n_context      n_context + 1 ... n_context + buffer_size
           |        `---context---'      `------------- this rollout -------------'
           only to know what happened before row 1

Nothing hidden is stored, so nothing goes stale: values and log probabilities are recomputed from raw steps.
"""

import math
from collections.abc import Generator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_attention_ac.samples import NO_EPISODE, RolloutTensors, TransitionSamples, WindowSamples
from sb3_attention_ac.trajectory import TrajectoryWindows, map_obs, split_batch


def _stored_dtype(space: spaces.Space[Any]) -> Any:
    """
    :param space: Of observations or actions
    :return: What to store them as. Integers of a Box as floats, but for images: VecNormalize makes fractions of them and
        leaves the space as it is, and so does a Gaussian policy.
    """
    is_integer = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.integer)
    return np.float32 if is_integer and not is_image_space(space) else space.dtype


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
    :param chunk_length: How many consecutive steps of a rollout are handed out together at most, at least 1. Chunks are made
        as equal as can be: the steps of a much shorter one would weigh more, as its minibatches are smaller.
    """

    added: np.ndarray
    episode_ids: np.ndarray
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
    ):
        if n_context < 0 or chunk_length < 1:
            raise ValueError(
                f"n_context={n_context} and chunk_length={chunk_length} were given, "
                "but n_context must be at least 0 and chunk_length at least 1."
            )
        self.n_history = n_context + 1
        self.n_context = n_context
        self.chunk_length = math.ceil(buffer_size / math.ceil(buffer_size / chunk_length))
        self._storage: dict[str, Any] = {}
        self._tensors: RolloutTensors | None = None
        self._targets: dict[str, th.Tensor] = {}
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    # --- filling --------------------------------------------------------------------------------------------------------

    def _zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.zeros((self.n_history + self.buffer_size, self.n_envs, *shape), dtype=dtype)

    def _allocate(self) -> None:
        if isinstance(self.observation_space, spaces.Dict):
            shapes: Any = self.obs_shape  # a dict of shapes: get_obs_shape() of a Dict space
            observations: Any = {
                key: self._zeros(shapes[key], _stored_dtype(space)) for key, space in self.observation_space.spaces.items()
            }
        else:
            observations = self._zeros(self.obs_shape, _stored_dtype(self.observation_space))
        self._storage = {
            "observations": observations,
            "actions": self._zeros((self.action_dim,), _stored_dtype(self.action_space)),
            "rewards": self._zeros((), np.float32),
            "episode_starts": self._zeros((), np.float32),
            "episode_ids": self._zeros((), np.int64) + NO_EPISODE,
        }

    def reset(self) -> None:
        """Start a new rollout; the last steps of the one before stay as context."""
        n_stored = self.pos
        if not self._storage:
            self._allocate()
        elif n_stored > 0:
            self._storage = {name: map_obs(lambda old: self._carry(old, n_stored), old) for name, old in self._storage.items()}
        for name, stored in self._storage.items():  # public views of this rollout's rows
            setattr(self, name, map_obs(lambda array: array[self.n_history :], stored))
        shape = (self.buffer_size, self.n_envs)
        for name in ("values", "log_probs", "advantages", "returns", "added"):
            setattr(self, name, np.zeros(shape, dtype=np.float32))
        self.offsets = np.zeros((*shape, 0), dtype=np.float32)
        self.terminal_observations, self.terminal_values = {}, np.zeros(0, dtype=np.float32)
        self._tensors, self._targets = None, {}
        self.pos, self.full = 0, False

    def _carry(self, old: np.ndarray, n_stored: int) -> np.ndarray:
        """A fresh array that starts with the last steps of the old one: tensors of the old rollout may still be in use."""
        new = np.zeros_like(old)
        new[: self.n_history] = old[n_stored : n_stored + self.n_history]
        return new

    def add(
        self,
        obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor | None = None,
        log_prob: th.Tensor | None = None,
    ) -> None:
        """
        Store one memory per environment.

        :param obs: Observation s_t, an array or a dictionary of arrays
        :param action: Action a_t
        :param reward: Reward r_t, as the environment gave it
        :param episode_start: Whether s_t is the first step of its episode
        :param value: Not needed: the values of the whole rollout are set at its end (:meth:`set_estimates`)
        :param log_prob: Not needed, likewise
        """
        row = self.n_history + self.pos
        storage = self._storage
        if isinstance(obs, dict):
            for key, array in storage["observations"].items():
                array[row] = np.reshape(obs[key], array.shape[1:])
        else:
            storage["observations"][row] = np.reshape(obs, storage["observations"].shape[1:])
        storage["actions"][row] = action.reshape((self.n_envs, self.action_dim))
        storage["rewards"][row] = reward
        storage["episode_starts"][row] = episode_start
        # Every episode of an environment gets the next number
        storage["episode_ids"][row] = self._episode_id_before(row) + (np.asarray(episode_start) > 0)
        if value is not None:
            self.values[self.pos] = value.detach().cpu().numpy().flatten()
        if log_prob is not None:
            self.log_probs[self.pos] = log_prob.detach().cpu().numpy().flatten()
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def _episode_id_before(self, row: int) -> np.ndarray:
        """:return: What a step in this row is numbered if its episode goes on, [n_envs]; a new number after no episode"""
        ids: np.ndarray = np.maximum(self._storage["episode_ids"][row - 1], 0)
        return ids

    def add_terminal_observation(self, env: int, obs: Any) -> None:
        """
        Remember the observation on which an episode was cut off by a time limit, for the value of what would have followed.
        Call it after :meth:`add` of the episode's last step.

        :param env: Index of the environment
        :param obs: Its ``terminal_observation``
        """
        self.terminal_observations[self.pos - 1, env] = map_obs(np.array, obs)  # a copy: environments may use it again

    def set_offsets(self, offsets: np.ndarray) -> None:
        """
        :param offsets: What was added to the parameters of the action distributions, [buffer_size, n_envs, n_parameters]
        """
        self.offsets = offsets

    def set_estimates(self, values: np.ndarray, log_probs: np.ndarray, added: np.ndarray | None = None) -> None:
        """
        :param values: V(h_t) before any update, [buffer_size, n_envs]
        :param log_probs: log pi(a_t | s_t) before any update, [buffer_size, n_envs]
        :param added: The part of the values that attention adds to an MLP critic which learns from transitions,
            [buffer_size, n_envs]; None for nothing
        """
        self.values[:] = values
        self.added[:] = 0.0 if added is None else added
        self.log_probs[:] = log_probs

    def compute_returns_and_advantage(
        self, last_values: th.Tensor, dones: np.ndarray, terminal_values: np.ndarray | None = None
    ) -> None:
        """
        GAE(lambda) as in SB3. An episode cut off by a time limit did not end: the value of its last observation is added to
        its last reward (see https://github.com/DLR-RM/stable-baselines3/issues/633).

        :param last_values: Values of the observations after the last step, one for each env
        :param dones: Whether the last step ended an episode, one for each env
        :param terminal_values: Values of :attr:`terminal_observations`, in their order; None for those of the last call, as in
            a callback that computes advantages again
        """
        if terminal_values is not None:
            self.terminal_values = terminal_values
        rewards = self.rewards
        if len(self.terminal_values) > 0:
            steps, envs = np.array(list(self.terminal_observations)).T
            self.rewards = rewards.copy()
            self.rewards[steps, envs] += self.gamma * self.terminal_values
        super().compute_returns_and_advantage(last_values, dones)
        # Rewards stay as the environment gave them: the encoder reads them
        self.rewards = rewards
        self._targets = {}

    # --- reading --------------------------------------------------------------------------------------------------------

    def tensors(self) -> RolloutTensors:
        """:return: The rollout on the device; transferred once"""
        if self._tensors is None:
            self._tensors = self._to_tensors()
        return self._tensors

    def _to_tensors(self, n_rows: int | None = None) -> RolloutTensors:
        """The first rows of the storage (all of them if None), on the device"""
        storage = {name: map_obs(lambda array: array[:n_rows], stored) for name, stored in self._storage.items()}
        return RolloutTensors(
            map_obs(self._to_device, storage["observations"]),
            self._to_device(storage["actions"]).float(),
            self._to_device(storage["rewards"]),
            self._to_device(storage["episode_starts"]) > 0,
            self._to_device(storage["episode_ids"]),
        )

    def _to_device(self, array: np.ndarray) -> th.Tensor:
        return th.as_tensor(array, device=self.device)

    def _target(self, name: str) -> th.Tensor:
        """One of the arrays set at the end of the rollout, on the device, [buffer_size, n_envs]; transferred once"""
        if name not in self._targets:
            self._targets[name] = self._to_device(getattr(self, name))
        return self._targets[name]

    def chunks(self) -> list[tuple[np.ndarray, int]]:
        """
        Cut the step axis into chunks of ``chunk_length``; the last one may be shorter.

        :return: (first steps, length) for each length that occurs, longest first
        """
        n_whole, rest = divmod(self.buffer_size, self.chunk_length)
        whole = [(np.arange(n_whole) * self.chunk_length, self.chunk_length)]
        return whole + ([(np.array([n_whole * self.chunk_length]), rest)] if rest else [])

    def windows(self, starts: np.ndarray, envs: np.ndarray, length: int) -> tuple[TrajectoryWindows, th.Tensor]:
        """
        :param starts: First step of each chunk, [N]
        :param envs: Environment of each chunk, [N]
        :param length: Length of the chunks, n
        :return: Windows of n_context + n steps, and the actions of the chunks, [N, n, action_dim]
        """
        steps, env = self._grid(starts, envs, length)
        context = th.arange(-self.n_context, 0, device=self.device)
        rows = self.n_history + th.cat([steps[:, :1] + context, steps], dim=1)  # [N, n_context + n]
        data = self.tensors()
        return data.windows(rows, env), data.actions[self.n_history + steps, env]

    def context(self) -> TrajectoryWindows:
        """:return: The last n_context steps of the rollout before, and the step to come, whose observation is not known yet"""
        storage, row = self._storage, self.n_history
        envs = th.arange(self.n_envs, device=self.device).unsqueeze(1)
        rows = th.arange(1, row + 1, device=self.device).expand(self.n_envs, -1)  # [n_envs, n_context + 1]
        storage["episode_ids"][row] = self._episode_id_before(row)
        return self._to_tensors(row + 1).windows(rows, envs)

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
        :return: Windows of n_context + 1 steps
        """
        env = th.as_tensor(envs, device=self.device).unsqueeze(1)  # [N, 1]
        last = th.as_tensor(steps, device=self.device).unsqueeze(1) + self.n_history  # [N, 1]
        rows = last + th.arange(1 - self.n_context, 1, device=self.device)  # [N, n_context]
        data = self.tensors()
        context = data.windows(rows, env)

        def append(window: th.Tensor, new: th.Tensor) -> th.Tensor:
            return th.cat([window, new.to(window.dtype).reshape(len(window), 1, *window.shape[2:])], dim=1)

        return TrajectoryWindows(
            map_obs(lambda window, obs: append(window, self._to_device(obs)), context.observations, observations),
            append(context.previous_actions, data.actions[last, env]),
            append(context.previous_rewards, data.rewards[last, env]),
            append(context.episode_starts, th.zeros_like(last)),
            append(context.episode_ids, data.episode_ids[last, env]),
        )

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """
        Shuffled transitions, as in SB3.

        :param batch_size: Transitions in a minibatch, None for all at once
        """
        return (samples.transitions for samples in self.get_transitions(batch_size))

    def get_transitions(self, batch_size: int | None = None) -> Generator[TransitionSamples, None, None]:
        """
        Shuffled transitions, and what their action distributions were tilted by.

        :param batch_size: Transitions in a minibatch, None for all at once
        """
        assert self.full, "The rollout is not complete yet"
        n_transitions = self.buffer_size * self.n_envs
        indices = th.as_tensor(np.random.permutation(n_transitions), device=self.device)
        samples = TransitionSamples(self._get_samples(indices), self._target("offsets").flatten(0, 1)[indices])
        yield from split_batch(samples, batch_size or n_transitions)

    def in_order(self, batch_size: int) -> Generator[tuple[Any, th.Tensor, np.ndarray, np.ndarray], None, None]:
        """
        Observations and actions in the order of the rollout.

        :param batch_size: Transitions at a time
        :return: Observations, actions, their steps and their environments
        """
        data = self.tensors()
        for index in np.split(np.arange(n := self.buffer_size * self.n_envs), range(batch_size, n, batch_size)):
            steps, envs = index // self.n_envs, index % self.n_envs
            rows, env = th.as_tensor(steps + self.n_history), th.as_tensor(envs)
            yield map_obs(lambda obs: obs[rows, env], data.observations), data.actions[rows, env], steps, envs  # noqa: B023

    def _get_samples(self, batch_inds: Any, env: VecNormalize | None = None) -> RolloutBufferSamples:
        data, rows = self.tensors(), batch_inds + self.n_history * self.n_envs
        observations: Any = map_obs(lambda obs: obs.flatten(0, 1)[rows], data.observations)  # [R, E, ...] -> [R * E, ...]
        names = ("values", "added", "log_probs", "advantages", "returns")
        values, added, *others = (self._target(name).flatten()[batch_inds] for name in names)
        return RolloutBufferSamples(observations, data.actions.flatten(0, 1)[rows], values - added, *others)

    def get_windows(self, batch_size: int | None = None) -> Generator[WindowSamples, None, None]:
        """
        Shuffled chunks with their context. All windows of a minibatch have the same length.

        :param batch_size: Steps that count in a minibatch, rounded to whole chunks (at least one); None for all at once
        """
        assert self.full, "The rollout is not complete yet"
        for starts, length in self.chunks():
            first, env = (grid.ravel() for grid in np.meshgrid(starts, np.arange(self.n_envs), indexing="ij"))
            order = np.random.permutation(len(first))
            n_windows = len(order) if batch_size is None else max(batch_size // length, 1)
            yield from split_batch(self.window_samples(first[order], env[order], length), n_windows)

    def window_samples(self, starts: np.ndarray, envs: np.ndarray, length: int) -> WindowSamples:
        """
        :param starts: First step of each chunk, [N]
        :param envs: Environment of each chunk, [N]
        :param length: Length of the chunks
        :return: The windows and what the losses need of them
        """
        windows, actions = self.windows(starts, envs, length)
        steps, env = self._grid(starts, envs, length)
        return WindowSamples(
            windows,
            actions,
            *(self._target(name)[steps, env] for name in ("values", "log_probs", "advantages", "returns", "offsets")),
        )
