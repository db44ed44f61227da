"""
Landmarks: raw steps of an episode that stay readable after they have left the context. A window is then

    [K landmarks | L context steps | C steps of the chunk]

The set changes only where a chunk begins, from the landmarks so far and the steps that have left the context since. By the
rule "first" the first steps of the episode stay (attention sinks, Xiao et al. 2024, https://arxiv.org/abs/2309.17453), by the
rule "surprise" its first step and those that the next-step prediction expected least. A surprise fades with each choice, so
that what is new replaces what is old. Raw steps are kept, nothing hidden: each pass encodes them anew, and acting, which makes
the same choice, sees the same steps as training.
"""

import numpy as np
import torch as th

from sb3_attention_ac.step_storage import NO_EPISODE, StepStorage
from sb3_attention_ac.type_aliases import TrajectoryWindows, map_obs

RULES = ("first", "surprise")
CPU = th.device("cpu")
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
        self._envs = th.arange(storage.n_envs).unsqueeze(1)  # [n_envs, 1]
        nothing = storage.tensors(CPU).windows(th.ones((storage.n_envs, n_landmarks), dtype=th.int64), self._envs)
        self._first = nothing  # of the first chunk, [n_envs, K, ...]

    def start_rollout(self, n_stored: int) -> None:
        """
        Call it before the storage's.

        :param n_stored: How many steps the rollout before had
        """
        chunks = self._chunks(n_stored)
        n_leaving = n_stored - (len(chunks) - 1) * self.chunk_length
        self._first = self._next(chunks[-1], self.storage.n_history + n_stored, n_leaving)

    def _chunks(self, n_stored: int) -> list[TrajectoryWindows]:
        """The landmarks of each chunk that has begun, [n_envs, K, ...] each, chosen anew: a callback may change steps"""
        chunks = [self._first]
        for step in range(self.chunk_length, n_stored, self.chunk_length):
            chunks.append(self._next(chunks[-1], self.storage.n_history + step, self.chunk_length))
        return chunks

    def _next(self, landmarks: TrajectoryWindows, row: int, n_leaving: int) -> TrajectoryWindows:
        """The landmarks of a chunk that begins in this row, from those before and the steps that have left the context"""
        steps = self.storage.tensors(CPU, row)
        rows = th.arange(row - n_leaving, row).expand(len(self._envs), -1) - self.n_context
        leaving, present = steps.windows(rows, self._envs), steps.episode_ids[-1].unsqueeze(1)
        return landmarks_after(landmarks, leaving, th.ones_like(rows, dtype=th.bool), present)

    def tensors(self, device: th.device, n_stored: int) -> TrajectoryWindows:
        """
        :param device: Where to put them
        :param n_stored: How many steps the rollout has so far
        :return: The landmarks of each chunk and environment as windows, [n_chunks, n_envs, K, ...] each
        """
        first, *others = self._chunks(n_stored)
        chunks = first.map(lambda *parts: th.stack(parts), *others)
        empty, last_before = chunks.episode_ids == NO_EPISODE, self.storage.n_history - 1

        def fill(landmarks: th.Tensor, steps: np.ndarray) -> th.Tensor:
            """A features extractor may not be finite on zeros: where there is no landmark, it gets an observation"""
            where = empty.reshape(*empty.shape, *[1] * (landmarks.dim() - 3))
            return th.where(where, th.from_numpy(steps[last_before]).unsqueeze(1), landmarks)

        filled = map_obs(fill, chunks.observations, self.storage.arrays["observations"])
        return chunks._replace(observations=filled).map(lambda part: part.to(device))


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
    ids = th.where(valid, candidates.episode_ids, NO_EPISODE)
    faded = None if candidates.surprises is None else candidates.surprises * SURPRISE_DECAY
    return candidates._replace(episode_ids=ids, surprises=faded).map(lambda part: part[windows, order])


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
    # The cheapest stay: where a choice is made must not matter. Where surprises differ by less than 0.01, the earlier step is
    # preferred; ages count modulo 1,000, so that float32 can tell them apart
    costs = ages if surprises is None else ages % 1000.0 * 1e-5 - surprises
    # Costs in an episode differ: the order of equal ones, which are not valid, says nothing. ONNX knows no stable sort
    order = th.where(valid, costs, th.inf).argsort(dim=1)[:, :n_landmarks]
    if surprises is not None:
        order = order.gather(1, th.where(valid.gather(1, order), order, -1).argsort(dim=1))
    return order
