"""The same evaluation for every algorithm, with the clock of training stopped meanwhile."""

import time

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_attention_ac.compare.randomness import own_randomness
from sb3_attention_ac.compare.settings import Protocol
from sb3_attention_ac.compare.storage import Evaluation


class EvaluationCallback(BaseCallback):
    """
    Evaluate before training, at evenly spaced steps, and at the end; the last of the evenly spaced ones is that at the end.

    :param eval_env: Environment with one copy per episode of an evaluation: each episode then has a start of its own,
        fixed by the protocol, whatever the agent did in the others
    :param protocol: What all runs share
    """

    def __init__(self, eval_env: VecEnv, protocol: Protocol) -> None:
        super().__init__()
        self.eval_env = eval_env
        self.protocol = protocol
        self.evaluations: list[Evaluation] = []
        self.train_seconds = 0.0
        self.evaluation_seconds = 0.0
        self._clock = 0.0

    def _on_training_start(self) -> None:
        self._clock = time.perf_counter()
        self._record(0)

    def _on_step(self) -> bool:
        # The last point belongs to the end of training, which comes after the last gradient steps
        reached = min(self.num_timesteps * self.protocol.evaluations // self.protocol.steps, self.protocol.evaluations - 1)
        if reached >= len(self.evaluations):
            self._record(reached)
        return True

    def _on_training_end(self) -> None:
        # RL Zoo calls this once more when training has ended
        if len(self.evaluations) <= self.protocol.evaluations:
            self._record(self.protocol.evaluations)

    def _record(self, point: int) -> None:
        """
        Evaluate once. One step of many parallel environments may pass several points: all get this evaluation.

        :param point: Number of the last point passed
        """
        now = time.perf_counter()
        self.train_seconds += now - self._clock
        returns, lengths = self._evaluate()
        for number in range(len(self.evaluations), point + 1):
            self.evaluations.append(Evaluation(number, self.num_timesteps, self.train_seconds, returns, lengths))
        self._clock = time.perf_counter()
        self.evaluation_seconds += self._clock - now

    def _evaluate(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self.eval_env)
        # Evaluations draw no random numbers from those of training: more or fewer of them change no result
        with own_randomness(self.protocol.evaluation_seed):
            self.eval_env.seed(self.protocol.evaluation_seed)
            returns, lengths = evaluate_policy(
                self.model,
                self.eval_env,
                n_eval_episodes=self.protocol.episodes,
                deterministic=self.protocol.deterministic,
                return_episode_rewards=True,
            )
        assert isinstance(returns, list) and isinstance(lengths, list)
        return tuple(float(value) for value in returns), tuple(int(length) for length in lengths)
