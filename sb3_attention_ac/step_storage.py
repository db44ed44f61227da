"""
Raw steps of a rollout, and of the last steps before it. With landmarks there is one more chunk of rows at the front.

    row:   0        1 ... n_context      n_context + 1 ... n_context + n_steps
           |        `---context---'      `---------- this rollout -----------'
           only to know what happened before row 1
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim, get_obs_shape, is_image_space

from sb3_attention_ac.type_aliases import Obs, TrajectoryWindows, map_obs

NO_EPISODE = -1


class RolloutTensors(NamedTuple):
    """
    A rollout on the device, with the steps before it. R rows, E environments.

    :param observations: [R, E, *obs_shape]
    :param actions: [R, E, action_dim]
    :param rewards: [R, E]
    :param episode_starts: [R, E]
    :param episode_ids: [R, E], ``NO_EPISODE`` where nothing has been stored yet
    :param ages: Steps since the episode began, [R, E]
    :param noise_ids: Number of the gSDE noise a step was sampled with, [R, E]; None without gSDE
    :param surprises: How unexpected each step was, [R, E]; None where landmarks do not ask for it
    :param landmarks: Those of each chunk, [n_chunks, E, K, ...]; None without landmarks
    """

    observations: Obs
    actions: th.Tensor
    rewards: th.Tensor
    episode_starts: th.Tensor
    episode_ids: th.Tensor
    ages: th.Tensor
    noise_ids: th.Tensor | None
    surprises: th.Tensor | None
    landmarks: TrajectoryWindows | None = None

    def windows(self, rows: th.Tensor, envs: th.Tensor, chunks: th.Tensor | None = None) -> TrajectoryWindows:
        """
        :param rows: Row of each step, at least 1, [N, W]
        :param envs: Environment of each window, [N, 1]
        :param chunks: Chunk whose landmarks go before each window, [N, 1]; None for windows without landmarks
        :return: N windows of W (or K + W) steps
        """
        steps = TrajectoryWindows(
            map_obs(lambda obs: obs[rows, envs], self.observations),
            self.actions[rows - 1, envs],
            self.rewards[rows - 1, envs],
            self.episode_starts[rows, envs],
            self.episode_ids[rows, envs],
            self.ages[rows, envs],
            None if self.noise_ids is None else self.noise_ids[rows, envs],
            None if self.surprises is None else self.surprises[rows, envs],
        )
        if self.landmarks is None or chunks is None:
            return steps
        where = chunks[:, 0], envs[:, 0]
        return steps.after(self.landmarks.map(lambda part: part[where]))


def stored_dtype(space: spaces.Space[Any]) -> Any:
    """
    :param space: Of observations or actions
    :return: What to store them as. A Box's integers, truth values and halves as single floats, but for images: VecNormalize
        and a Gaussian policy make fractions of them, and leave the space as it is.
    """
    dtype = np.dtype(space.dtype)
    is_coarse = isinstance(space, spaces.Box) and (dtype.kind in "iub" or dtype == np.float16)
    return np.float32 if is_coarse and not is_image_space(space) else space.dtype


class StepStorage:
    """
    :param n_history: Rows before the rollout's own
    :param n_steps: Rows of a rollout
    :param n_envs: Number of environments
    :param observation_space: Observation space
    :param action_space: Action space
    :param held_noise: Whether actions are sampled with noise that is held for some steps (gSDE)
    :param with_surprises: Whether to store how unexpected each step was
    """

    def __init__(
        self,
        n_history: int,
        n_steps: int,
        n_envs: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        held_noise: bool,
        with_surprises: bool = False,
    ):
        self.n_history, self.n_rows, self.n_envs = n_history, n_history + n_steps, n_envs
        self.sizes = (n_history, n_steps, n_envs)
        self.noise_id = 0

        def zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            return np.zeros((self.n_rows, n_envs, *shape), dtype=dtype)

        if isinstance(observation_space, spaces.Dict):
            parts = observation_space.spaces.items()
            observations: Any = {key: zeros(_shape(space), stored_dtype(space)) for key, space in parts}
        else:
            observations = zeros(_shape(observation_space), stored_dtype(observation_space))
        self.arrays: dict[str, Any] = {
            "observations": observations,
            "actions": zeros((get_action_dim(action_space),), stored_dtype(action_space)),
            "rewards": zeros((), np.float32),
            "episode_starts": zeros((), np.float32),
            "episode_ids": zeros((), np.int64) + NO_EPISODE,
            "ages": zeros((), np.float32),
        }
        if held_noise:
            self.arrays["noise_ids"] = zeros((), np.int64)
        if with_surprises:
            self.arrays["surprises"] = zeros((), np.float32)

    def start_rollout(self, n_stored: int) -> None:
        """
        The last steps of the rollout before become the history of the next. Fresh arrays: tensors of the old rollout may still
        be in use.

        :param n_stored: How many steps the rollout before had
        """

        def carry(old: np.ndarray) -> np.ndarray:
            new = np.zeros_like(old)
            new[: self.n_history] = old[n_stored : n_stored + self.n_history]
            return new

        self.arrays = {name: map_obs(carry, old) for name, old in self.arrays.items()}

    def rollout(self) -> dict[str, Any]:
        """:return: Views of this rollout's rows"""
        return {name: map_obs(lambda array: array[self.n_history :], old) for name, old in self.arrays.items()}

    def take_over(self, given: Mapping[str, Any]) -> bool:
        """
        :param given: What stands in the place of the views of :meth:`rollout`: these, or arrays that were put there
        :return: Whether there were such arrays; their numbers are stored
        """
        n_taken = 0

        def take(stored: np.ndarray, view: Any) -> None:
            nonlocal n_taken
            view = np.asarray(view)
            if view.base is not stored or view.strides != stored.strides:
                np.copyto(stored[self.n_history :], view, casting="unsafe")
                n_taken += 1

        for name, stored in self.arrays.items():
            map_obs(take, stored, given[name])
        return n_taken > 0

    def add(self, step: int, obs: Any, action: np.ndarray, reward: np.ndarray, episode_start: np.ndarray) -> None:
        """
        Store one step of every environment.

        :param step: Its number in the rollout
        :param obs: Observation s_t, an array or a dictionary of arrays
        :param action: Action a_t
        :param reward: Reward r_t
        :param episode_start: Whether s_t is the first step of its episode, [n_envs]
        """
        row, arrays = self.n_history + step, self.arrays
        is_first = arrays["episode_ids"][row - 1, 0] == NO_EPISODE
        is_start = np.asarray(episode_start) > 0

        def store(array: np.ndarray, new: Any) -> None:
            array[row] = np.reshape(new, array.shape[1:])
            if is_first:  # a features extractor may not be finite on zeros: empty rows hold an observation
                array[:row] = array[row]

        stored = arrays["observations"]
        map_obs(store, stored, obs)
        arrays["actions"][row] = np.reshape(action, arrays["actions"].shape[1:])
        arrays["rewards"][row] = reward
        arrays["episode_starts"][row] = episode_start
        self.expect(step)
        if is_start.any():
            arrays["episode_ids"][row] += is_start  # every episode of an environment gets the next number
            arrays["ages"][row][is_start] = 0.0
        if "noise_ids" in arrays:
            arrays["noise_ids"][row] = self.noise_id

    def expect(self, step: int) -> None:
        """
        Number a step as if its episode goes on.

        :param step: Its number in the rollout
        """
        ids, ages, row = self.arrays["episode_ids"], self.arrays["ages"], self.n_history + step
        if ids[row - 1, 0] == NO_EPISODE:  # then nothing has been stored of any environment
            ids[row], ages[row] = 0, 0.0
        else:
            ids[row] = ids[row - 1]
            np.add(ages[row - 1], 1.0, out=ages[row])

    def tensors(self, device: th.device, n_rows: int | None = None) -> RolloutTensors:
        """
        :param device: Where to put them
        :param n_rows: How many of the first rows, None for all
        :return: The steps on the device
        """

        def to_device(array: np.ndarray) -> th.Tensor:
            return th.as_tensor(array[:n_rows], device=device)

        arrays = {name: map_obs(to_device, stored) for name, stored in self.arrays.items()}
        return RolloutTensors(
            arrays["observations"],
            arrays["actions"].float(),
            arrays["rewards"],
            arrays["episode_starts"] > 0,
            arrays["episode_ids"],
            arrays["ages"],
            arrays.get("noise_ids"),
            arrays.get("surprises"),
        )


def _shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    shape: Any = get_obs_shape(space)
    return tuple(shape)
