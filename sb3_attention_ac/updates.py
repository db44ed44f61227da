"""What a minibatch is and which terms of the loss it gives: one class for an MLP actor, one for a memory actor."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch as th
import torch.nn.functional as F

from sb3_attention_ac.architecture import ATTENTION_MINIBATCH_FACTOR
from sb3_attention_ac.auxiliary.recent_trajectories import RecentTrajectories
from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.evaluation import evaluate_action_advantages, evaluate_actions, evaluate_transitions
from sb3_attention_ac.losses import clipped_surrogate_loss, entropy_loss, normalized, value_loss
from sb3_attention_ac.networks.preprocessing import encode_actions
from sb3_attention_ac.policies import AttentionActorCriticPolicy
from sb3_attention_ac.train_log import TrainLog
from sb3_attention_ac.type_aliases import ActionParameters, AuxiliaryLoss, TransitionSamples, WindowOutput, WindowSamples

# With an MLP actor attention takes one step per this many of the MLPs'. While its gate is closed, half as many (at least one
# in each epoch); a self-supervised loss needs more
MINIBATCHES_PER_ATTENTION_STEP = 8
MINIBATCHES_PER_STEP_GATE_CLOSED = 16
MINIBATCHES_PER_AUXILIARY_STEP = 2
MINIBATCHES_PER_CRITIC_STEP = 2  # of a memory actor's critic with an encoder of its own


class UpdateSettings(NamedTuple):
    """Current values of the algorithm's arguments, see :class:`~sb3_attention_ac.aac.AttentionActorCritic`."""

    batch_size: int
    clip_range: float
    clip_range_vf: float | None
    normalize_advantage: bool
    ent_coef: float
    vf_coef: float
    aux_coef: float
    mask_ratio: float
    log_barrier_coef: float = 0.0


Batch = TypeVar("Batch")
Losses = dict[str, th.Tensor]


class Update(ABC, Generic[Batch]):
    """
    One update's minibatches and losses.

    :param policy: The policy
    :param buffer: A full buffer
    :param recent: The most recent trajectories, for the masked prediction
    :param settings: Size of a minibatch, coefficients and clipping
    :param log: Where to note them
    """

    def __init__(
        self,
        policy: AttentionActorCriticPolicy,
        buffer: TrajectoryRolloutBuffer,
        recent: RecentTrajectories,
        settings: UpdateSettings,
        log: TrainLog,
    ):
        self.policy, self.buffer, self.recent, self.settings, self.log = policy, buffer, recent, settings, log
        self.continue_training = True  # the actor; False once its KL divergence has exceeded the target

    @property
    @abstractmethod
    def is_done(self) -> bool:
        """Whether nothing is left to learn from this rollout"""

    @abstractmethod
    def minibatches(self, epoch: int) -> Iterator[Batch]:
        """
        :param epoch: Number of the epoch
        :return: The minibatches of this epoch, up to the one in which the actor has to stop
        """

    @abstractmethod
    def losses(self, batch: Batch) -> Losses:
        """
        :param batch: A minibatch
        :return: The terms of the loss, weighted
        """

    def _actor_losses(
        self,
        batch: TransitionSamples | WindowSamples,
        log_prob: th.Tensor,
        entropy: th.Tensor | None,
        given: ActionParameters,
    ) -> Losses:
        settings = self.settings
        advantages = normalized(batch.advantages) if settings.normalize_advantage else batch.advantages
        log_ratio = log_prob - batch.old_log_prob
        policy_loss = clipped_surrogate_loss(th.exp(log_ratio), advantages, settings.clip_range)
        negative_entropy = entropy_loss(entropy, log_prob)
        self.log.add_log_ratio(log_ratio)
        self.log.add("policy_gradient_loss", policy_loss)
        self.log.add("entropy_loss", negative_entropy)
        losses = {"policy_gradient_loss": policy_loss}
        if settings.ent_coef != 0:  # else no gradient need be computed for it
            losses["entropy_loss"] = settings.ent_coef * negative_entropy
        if settings.log_barrier_coef != 0:
            distribution: Any = self.policy.distribution  # discrete: checked at construction
            log_barrier = distribution.log_barrier(given).mean()
            self.log.add("log_barrier_loss", log_barrier)
            losses["log_barrier_loss"] = settings.log_barrier_coef * log_barrier
        return losses

    def _value_losses(self, batch: TransitionSamples | WindowSamples, values: th.Tensor) -> Losses:
        loss = value_loss(values, batch.old_values, batch.returns, self.settings.clip_range_vf)
        self.log.add("value_loss", loss)
        return {"value_loss": self.settings.vf_coef * loss}

    def _attention_q_losses(self, batch: WindowSamples, encoded: WindowOutput) -> Losses:
        policy = self.policy
        if policy.attention_q is None:
            return {}
        loss = F.mse_loss(evaluate_action_advantages(policy, encoded, batch), normalized(batch.advantages))
        self.log.add("attention_q_loss", loss)
        return {"attention_q_loss": self.settings.vf_coef * loss}

    def _auxiliary_losses(self, batch: WindowSamples, encoded: WindowOutput) -> Losses:
        policy, windows = self.policy, batch.windows
        auxiliary: dict[str, AuxiliaryLoss] = {}
        hidden = encoded.stepped.hidden
        if policy.next_step_prediction is not None and hidden is not None:
            previous_actions = encode_actions(windows.previous_actions, policy.action_space)
            auxiliary |= policy.next_step_prediction.losses(windows, hidden, encoded.features, previous_actions)
        if policy.masked_prediction is not None:
            n_windows, length = windows.episode_ids.shape
            drawn = self.recent.sample(max(n_windows // 2, 2), length)
            encoder, extract = policy.masked_encoder(), policy.extract_features
            auxiliary |= policy.masked_prediction(encoder, extract, drawn, self.settings.mask_ratio)
        for name, (loss, baseline) in auxiliary.items():
            self.log.add(f"aux_{name}_loss", loss)
            self.log.add(f"aux_{name}_baseline", baseline)
        weight = self.settings.aux_coef / max(len(auxiliary), 1)
        return {f"aux_{name}_loss": weight * loss for name, (loss, _) in auxiliary.items()}


class MlpActorUpdate(Update[TransitionSamples | WindowSamples]):
    """
    The MLPs of actor and critic learn from shuffled transitions, as in PPO; in between, attention learns from windows what the
    MLP critic leaves unexplained.
    """

    @cached_property
    def _attention_learns(self) -> bool:
        return not self.policy.skips_attention

    @cached_property
    def _windows(self) -> Iterator[WindowSamples]:
        return self._all_windows()

    def _all_windows(self) -> Iterator[WindowSamples]:
        """Windows for attention, one pass over the rollout after the other; the MLPs are shuffled as without attention"""
        _, keys, position, *_ = np.random.get_state()
        random = np.random.RandomState([int(keys[0]), int(position)])
        while True:
            yield from self.buffer.get_windows(ATTENTION_MINIBATCH_FACTOR * self.settings.batch_size, random)

    @property
    def is_done(self) -> bool:
        return not self.continue_training and not self._attention_learns

    def minibatches(self, epoch: int) -> Iterator[TransitionSamples | WindowSamples]:
        """As :meth:`Update.minibatches`; attention goes on where the actor has to stop"""
        period = self._minibatches_per_attention_step()
        if self.is_done:
            return
        if not self.continue_training:  # PPO would shuffle no more: the random stream stays where it leaves it
            n_minibatches = math.ceil(self.buffer.buffer_size * self.buffer.n_envs / self.settings.batch_size)
            yield from itertools.islice(self._windows, math.ceil(n_minibatches / period))
            return
        for i, transitions in enumerate(self.buffer.get_transitions(self.settings.batch_size)):
            batches: list[TransitionSamples | WindowSamples] = [transitions] if self.continue_training else []
            if i % period == 0 and self._attention_learns:
                # A masked prediction may teach a features extractor that the actor reads: after the first ratio, which is one
                batches.insert(0 if self.policy.masked_prediction is None else len(batches), next(self._windows))
            yield from batches
            if self.is_done:
                return

    def _minibatches_per_attention_step(self) -> int:
        policy = self.policy
        if policy.aux_targets:
            return MINIBATCHES_PER_AUXILIARY_STEP
        if policy.value_gate is not None and policy.value_gate.is_closed and policy.attention_q is None:
            return MINIBATCHES_PER_STEP_GATE_CLOSED
        return MINIBATCHES_PER_ATTENTION_STEP

    def losses(self, batch: TransitionSamples | WindowSamples) -> Losses:
        if isinstance(batch, TransitionSamples):
            steps = batch.observations, batch.actions, batch.action_masks, batch.logit_offsets
            values, log_prob, entropy, given = evaluate_transitions(self.policy, *steps)
            return self._actor_losses(batch, log_prob, entropy, given) | self._value_losses(batch, values)
        encoded = self.policy.encode_windows(batch.windows, batch.actions.shape[1])
        assert encoded.critic is not None
        critic = self.policy.critic_output(encoded.critic)
        assert critic.residual is not None
        loss = F.mse_loss(critic.mlp_values.detach() + critic.residual, batch.returns)
        self.log.add("attention_value_loss", loss)
        losses = {"attention_value_loss": self.settings.vf_coef * loss}
        return losses | self._attention_q_losses(batch, encoded) | self._auxiliary_losses(batch, encoded)


class MemoryActorUpdate(Update[tuple[WindowSamples, bool]]):
    """
    Actor and critic learn from the same windows. A critic that only the values need learns from every second minibatch,
    alternating over epochs: the last minibatch of an epoch may always hold the same steps.
    """

    @property
    def is_done(self) -> bool:
        return not self.continue_training

    def minibatches(self, epoch: int) -> Iterator[tuple[WindowSamples, bool]]:
        """As :meth:`Update.minibatches`; with each whether the critic is left out"""
        may_skip = self._may_skip_critic()
        for i, windows in enumerate(self.buffer.get_windows(self.settings.batch_size)):
            yield windows, may_skip and (epoch + i) % MINIBATCHES_PER_CRITIC_STEP != 0
            if not self.continue_training:
                return

    def _may_skip_critic(self) -> bool:
        """:return: Whether only the values need the critic: no Q_att, masked prediction or shared features extractor"""
        policy = self.policy
        teaches_features = policy.share_features_extractor and any(True for _ in policy.features_extractor.parameters())
        needed = policy.attention_q is not None or policy.masked_prediction is not None or teaches_features
        return policy.critic_network.encoder is not None and not needed

    def losses(self, batch: tuple[WindowSamples, bool]) -> Losses:
        samples, skip_critic = batch
        encoded = self.policy.encode_windows(samples.windows, samples.actions.shape[1], skip_critic)
        losses: Losses = {}
        if encoded.critic is not None:
            losses |= self._value_losses(samples, self.policy.critic_output(encoded.critic).values)
        losses |= self._attention_q_losses(samples, encoded)
        losses |= self._actor_losses(samples, *evaluate_actions(self.policy, encoded, samples))
        return losses | self._auxiliary_losses(samples, encoded)


def update_class(policy: AttentionActorCriticPolicy) -> type[Any]:
    """:return: The :class:`Update` for the policy's kind of actor, which makes the minibatches that its losses take"""
    return MemoryActorUpdate if policy.memory_actor else MlpActorUpdate
