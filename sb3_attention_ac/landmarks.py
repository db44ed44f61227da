"""
Landmarks: raw steps of an episode that stay readable after they have left the context. A window is then

    [K landmarks | L context steps | C steps of the chunk]

The set changes only where a chunk begins, from the landmarks so far and the steps that have left the context since. By the
rule "first" the first steps of the episode stay (attention sinks, Xiao et al. 2024, https://arxiv.org/abs/2309.17453), by the
rule "surprise" its first step and those that the next-step prediction expected least. A surprise fades with each choice, so
that what is new replaces what is old. Raw steps are kept, nothing hidden: each pass encodes them anew, and acting, which makes
the same choice, sees the same steps as training.
"""

from typing import Any

import numpy as np
import torch as th

from sb3_attention_ac.step_storage import NO_EPISODE, StepStorage
from sb3_attention_ac.type_aliases import TrajectoryWindows, map_obs

RULES = ("first", "surprise")
SURPRISE_DECAY = 0.9  # of a landmark's surprise, at each choice


def check_rule(landmark_rule: str) -> None:
    """:raises ValueError: If there is no such rule"""
    if landmark_rule not in RULES:
        raise ValueError(f"landmark_rule={landmark_rule!r} was given, but it must be one of {list(RULES)}.")


class LandmarkStorage:
    """
    The landmarks of each chunk of a rollout.

    :param storage: Raw steps of the rollout, and of at least a context and a chunk before it
    :param n_landmarks: K
    :param n_context: L
    :param chunk_length: C
    """

    def __init__(self, storage: StepStorage, n_landmarks: int, n_context: int, chunk_length: int):
        self.storage, self.n_landmarks, self.n_context, self.chunk_length = storage, n_landmarks, n_context, chunk_length
        self.n_chunks = -(-(storage.n_rows - storage.n_history) // chunk_length)
        rows = np.zeros((self.n_chunks, n_landmarks), dtype=np.int64) + 1
        self.arrays: dict[str, Any] = {
            name: map_obs(lambda array: np.zeros_like(array).swapaxes(1, 2), part) for name, part in self._steps(rows).items()
        }  # [n_chunks, n_envs, K, ...] each
        self.arrays["episode_ids"] += NO_EPISODE
        self._length = chunk_length  # of the chunk before

    def _steps(self, rows: np.ndarray) -> dict[str, Any]:
        """:return: What a window holds of these rows, [*rows.shape, n_envs, ...] each"""
        arrays = self.storage.arrays
        before = {"previous_actions": "actions", "previous_rewards": "rewards"}
        optional = [name for name in ("noise_ids", "surprises") if name in arrays]
        same = ["observations", "episode_starts", "episode_ids", "ages", *optional]
        steps = {name: map_obs(lambda array: array[rows], arrays[name]) for name in same}
        return steps | {name: arrays[source][rows - 1] for name, source in before.items()}

    def start_rollout(self, n_stored: int) -> None:
        """
        Call it after the storage's, before the first step.

        :param n_stored: How many steps the rollout before had
        """
        last = max(n_stored - 1, 0) // self.chunk_length
        self._length = n_stored - last * self.chunk_length
        self.arrays = {name: map_obs(lambda old: _with_first(old, old[last]), part) for name, part in self.arrays.items()}
        self._select(0, self.storage.n_history, self._length)

    def add(self, step: int) -> None:
        """
        Choose the landmarks of a chunk. Call it before the step is stored.

        :param step: Its number in the rollout
        """
        chunk, offset = divmod(step, self.chunk_length)
        if offset == 0 and chunk > 0:
            for part in self.arrays.values():
                map_obs(lambda array: array.__setitem__(chunk, array[chunk - 1]), part)
            self._select(chunk, self.storage.n_history + step, self.chunk_length)

    def _select(self, chunk: int, row: int, n_leaving: int) -> None:
        """The landmarks of a chunk that begins in this row, from its current ones and the steps that have left the context"""
        first = row - self.n_context - n_leaving
        leaving = self._steps(np.arange(first, first + n_leaving))  # [n_leaving, n_envs, ...] each
        candidates = {
            name: map_obs(lambda old, new: np.concatenate([old[chunk], new.swapaxes(0, 1)], axis=1), self.arrays[name], part)
            for name, part in leaving.items()
        }  # [n_envs, K + n_leaving, ...] each
        ids = candidates["episode_ids"]
        present = self.storage.arrays["episode_ids"][row - 1][:, None]
        valid = (ids == present) & (present != NO_EPISODE)
        surprises = th.from_numpy(candidates["surprises"]) if "surprises" in candidates else None
        order = choose(th.from_numpy(candidates["ages"]), surprises, th.from_numpy(valid), self.n_landmarks).numpy()
        envs = np.arange(len(order))[:, None]
        candidates["episode_ids"] = np.where(valid, ids, NO_EPISODE)
        for name, part in candidates.items():  # [n_envs, K, ...] each
            map_obs(lambda array, new: array.__setitem__(chunk, new[envs, order]), self.arrays[name], part)
        if surprises is not None:
            self.arrays["surprises"][chunk] *= np.float32(SURPRISE_DECAY)

    def tensors(self, device: th.device) -> TrajectoryWindows:
        """:return: The landmarks of each chunk and environment as windows, [n_chunks, n_envs, K, ...] each"""
        empty, last_before = self.arrays["episode_ids"] == NO_EPISODE, self.storage.n_history - 1

        def fill(array: np.ndarray, steps: np.ndarray) -> None:
            """A features extractor may not be finite on zeros: where there is no landmark, it gets an observation"""
            chunks, envs, slots = empty.nonzero()
            array[chunks, envs, slots] = steps[last_before, envs]

        map_obs(fill, self.arrays["observations"], self.storage.arrays["observations"])
        parts = {name: map_obs(lambda array: th.as_tensor(array, device=device), part) for name, part in self.arrays.items()}
        return TrajectoryWindows(
            parts["observations"],
            parts["previous_actions"].float(),
            parts["previous_rewards"],
            parts["episode_starts"] > 0,
            parts["episode_ids"],
            parts["ages"],
            parts.get("noise_ids"),
            parts.get("surprises"),
            self.n_landmarks,
        )


def _with_first(old: np.ndarray, first: np.ndarray) -> np.ndarray:
    new = np.zeros_like(old)
    new[0] = first
    return new


def landmarks_after(
    landmarks: TrajectoryWindows, leaving: TrajectoryWindows, has_left: th.Tensor, episodes: th.Tensor
) -> TrajectoryWindows:
    """
    The landmarks as they would be chosen if a chunk began now.

    :param landmarks: Those of the current chunk, [N, K]
    :param leaving: Steps that were in its context or after it, [N, C]
    :param has_left: Which of them would have left the context, [N, C]
    :param episodes: The current episode, [N, 1]
    :return: Landmarks, [N, K]
    """
    n_landmarks = landmarks.episode_ids.shape[1]
    candidates = landmarks.map(lambda old, new: th.cat([old, new], dim=1), leaving)  # [N, K + C, ...] each
    valid = (candidates.episode_ids == episodes) & (episodes != NO_EPISODE)
    valid &= th.cat([th.ones_like(landmarks.episode_ids, dtype=th.bool), has_left], dim=1)
    order = choose(candidates.ages, candidates.surprises, valid, n_landmarks)  # [N, K]
    windows = th.arange(len(order), device=order.device).unsqueeze(1)
    there = candidates._replace(episode_ids=th.where(valid, candidates.episode_ids, NO_EPISODE))
    return there.map(lambda part: part[windows, order])._replace(n_landmarks=n_landmarks)


def choose(ages: th.Tensor, surprises: th.Tensor | None, valid: th.Tensor, n_landmarks: int) -> th.Tensor:
    """
    Choose the landmarks, of a rollout and while acting, from the landmarks so far and the steps that have left the context.

    :param ages: Steps since the episode began, [N, K + n_leaving]
    :param surprises: How unexpected each was, by the rule "surprise": those that stay are then in the order of the episode,
        after empty places, so that positions tell which came later. None by the rule "first"
    :param valid: Whether each is of the current episode, [N, K + n_leaving]
    :param n_landmarks: K
    :return: Which of them stay, in this order, [N, K]
    """
    # The cheapest stay. Of equal surprises the earlier: where a choice is made must not matter
    costs = ages if surprises is None else ages % 1000.0 * 1e-5 - surprises
    # Costs in an episode differ: the order of equal ones, which are not valid, says nothing. ONNX knows no stable sort
    order = th.where(valid, costs, th.inf).argsort(dim=1)[:, :n_landmarks]
    if surprises is not None:
        order = order.gather(1, th.where(valid.gather(1, order), order, -1).argsort(dim=1))
    return order
