"""The same evaluation for every algorithm, with the clock of training stopped meanwhile."""

import inspect
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from sb3_attention_ac.compare.episodes import Episode, take_finished
from sb3_attention_ac.compare.errors import CompareError
from sb3_attention_ac.compare.randomness import own_randomness
from sb3_attention_ac.compare.settings import Protocol
from sb3_attention_ac.compare.storage import Evaluation
from sb3_attention_ac.networks.distributions import forbids_actions

LONGEST_EPISODE = 100_000  # steps; an untrained policy may go in circles for ever


class RecordedEnv(NamedTuple):
    """
    :param env: Parallel environments
    :param episodes: What the :class:`~sb3_attention_ac.compare.episodes.EpisodeRecorder` of each has recorded
    """

    env: VecEnv
    episodes: Sequence[list[Episode]]


class EvaluationCallback(BaseCallback):
    """
    Evaluate before training and at evenly spaced steps; the last of these is at the end, where :meth:`finish` is called.

    :param make_env: Makes an environment with one copy per episode of an evaluation: each episode then has a start of its own,
        fixed by the protocol, whatever the agent did in the others
    :param protocol: What all runs share
    :param training: What the recorders of the training environments record
    """

    def __init__(
        self, make_env: Callable[[], RecordedEnv], protocol: Protocol, training: Sequence[list[Episode]] = ()
    ) -> None:
        super().__init__()
        self.make_env = make_env
        self.protocol = protocol
        self.training = training
        self.recorded: RecordedEnv | None = None
        self.evaluations: list[Evaluation] = []
        self.train_seconds = 0.0
        self.evaluation_seconds = 0.0
        self._clock = 0.0

    def _on_training_start(self) -> None:
        self._lap()
        self._record(0)

    def _on_step(self) -> bool:
        # The last point belongs to the end of training, which comes after the last gradient steps
        reached = min(self.num_timesteps * self.protocol.evaluations // self.protocol.steps, self.protocol.evaluations - 1)
        if reached >= len(self.evaluations):
            self._record(reached)
        return True

    def finish(self) -> None:
        """Evaluate what training ended in. Not at SB3's end of training, which RL Zoo announces after a crash too."""
        self._record(self.protocol.evaluations)
        self.close()

    def give_up(self) -> None:
        """The run diverged: the remaining evaluations get returns of NaN."""
        self.train_seconds += self._lap()
        nothing = self.protocol.episodes
        self._append(self.protocol.evaluations, (math.nan,) * nothing, (0,) * nothing)
        self.close()

    def close(self) -> None:
        """Close the environment of the evaluations."""
        if self.recorded is not None:
            self.recorded.env.close()
            self.recorded = None

    def _lap(self) -> float:
        """:return: Seconds since the last call"""
        before, self._clock = self._clock, time.perf_counter()
        return self._clock - before

    def _record(self, point: int) -> None:
        """
        Evaluate once. One step of many parallel environments may pass several points: all get this evaluation.

        :param point: Number of the last point passed
        """
        self.train_seconds += self._lap()
        self._append(point, *self._evaluate())
        self.evaluation_seconds += self._lap()

    def _append(self, point: int, returns: tuple[float, ...], lengths: tuple[int, ...]) -> None:
        ended = [episode.total for episodes in self.training for episode in take_finished(episodes)]
        mean = float(np.mean(ended)) if ended else None
        for number in range(len(self.evaluations), point + 1):
            self.evaluations.append(Evaluation(number, self.num_timesteps, self.train_seconds, returns, lengths, mean))

    def _evaluate(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        # Evaluations draw no random numbers from those of training: more or fewer of them change no result
        with own_randomness(self.protocol.evaluation_seed):
            return self._play(*self._begin())

    def _begin(self) -> tuple[RecordedEnv, VecEnvObs]:
        """
        :return: Environments at the starts fixed by the protocol, and their first observations
        """
        kept = self.recorded
        recorded = self.recorded = kept or self.make_env()
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, recorded.env)
        begun = [len(episodes) for episodes in recorded.episodes]
        recorded.env.seed(self.protocol.evaluation_seed)
        observations = recorded.env.reset()
        if kept is not None and any(len(episodes) == n for episodes, n in zip(recorded.episodes, begun, strict=True)):
            # A wrapper has kept a game going because it has lives left: only a new environment starts anew
            self.close()
            return self._begin()
        for episodes in recorded.episodes:
            take_finished(episodes)
        return recorded, observations

    def _takes_masks(self, env: VecEnv) -> bool:
        """Whether the environment forbids actions, and the algorithm takes masks as in training"""
        return "action_masks" in inspect.signature(self.model.predict).parameters and forbids_actions(env)

    def _play(self, recorded: RecordedEnv, observations: VecEnvObs) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """
        SB3's ``evaluate_policy`` would wait for ever for an episode that a wrapper outside of ``Monitor`` ends.

        :param recorded: Environments that have just been reset
        :param observations: Their first observations
        :return: Return and length of the first episode of each
        """
        played: dict[int, tuple[float, int]] = {}
        states, starts = None, np.ones(recorded.env.num_envs, dtype=bool)
        takes_masks, masks = self._takes_masks(recorded.env), dict[str, Any]()
        for _ in range(LONGEST_EPISODE):
            if takes_masks:
                masks["action_masks"] = get_action_masks(recorded.env)
            actions, states = self.model.predict(
                observations,  # type: ignore[arg-type]
                state=states,
                episode_start=starts,
                deterministic=self.protocol.deterministic,
                **masks,
            )
            observations, _, starts, _ = recorded.env.step(actions)
            for index in np.flatnonzero(starts).tolist():
                # Parallel environments reset themselves, so one episode more is under way; after a lost life it is the same
                finished = take_finished(recorded.episodes[index])
                if finished and index not in played:
                    total = sum(episode.total for episode in finished)
                    played[index] = total, sum(episode.length for episode in finished)
            if len(played) == len(recorded.episodes):
                returns, lengths = zip(*(played[index] for index in sorted(played)), strict=True)
                return returns, lengths
        raise CompareError(
            f"An episode of an evaluation has not ended after {LONGEST_EPISODE:,} steps. Give the environment a time limit: "
            "`max_episode_steps` where it is registered, or `gymnasium.wrappers.TimeLimit` as an `env_wrapper`."
        )
