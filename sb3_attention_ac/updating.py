"""The update: minibatches of a rollout, their losses, and steps of the optimizer."""

import math
import operator
from collections.abc import Iterator
from functools import reduce

import torch as th
import torch.nn.functional as F
from stable_baselines3.common.type_aliases import RolloutBufferSamples, Schedule

from sb3_attention_ac.adam import QuickSteps
from sb3_attention_ac.auxiliary import AuxiliaryLoss
from sb3_attention_ac.clipping import clip_gradients
from sb3_attention_ac.collecting import TrajectoryCollection
from sb3_attention_ac.evaluations import Remembered
from sb3_attention_ac.history import RecentTrajectories
from sb3_attention_ac.losses import clipped_surrogate_loss, entropy_loss, normalized, value_loss
from sb3_attention_ac.parameter_groups import scale_attention_learning_rate
from sb3_attention_ac.samples import TransitionSamples, WindowSamples
from sb3_attention_ac.training_log import TrainingLog
from sb3_attention_ac.trajectory import TrajectoryWindows

# MLPs learn from shuffled transitions, attention beside them from windows, whose neighbouring steps say much the same: it
# takes one step for so many of theirs, on minibatches larger by a factor. Adam can take steps longer by the root of that
# factor (Malladi et al. 2022, https://arxiv.org/abs/2205.10287). Where the gate lets nothing of it in, half as many steps do
# (at least one in each epoch); a self-supervised loss needs more.
MINIBATCHES_PER_ATTENTION_STEP = 8
MINIBATCHES_PER_UNHEARD_STEP = 16
MINIBATCHES_PER_AUXILIARY_STEP = 2
MINIBATCHES_PER_CRITIC_STEP = 2  # of a memory actor's critic with an encoder of its own: docs/research.md
ATTENTION_MINIBATCH_FACTOR = 2
ATTENTION_LEARNING_RATE_FACTOR = ATTENTION_MINIBATCH_FACTOR**0.5


class TrajectoryUpdate(TrajectoryCollection):
    """
    An algorithm that learns from collected trajectories. The arguments are those of
    :class:`~sb3_attention_ac.attention_ac.AttentionActorCritic`, which sets them.
    """

    batch_size: int
    n_epochs: int
    clip_range: float | Schedule
    clip_range_vf: float | Schedule | None
    normalize_advantage: bool
    target_kl: float | None
    aux_coef: float
    mask_ratio: float
    recent_trajectories: RecentTrajectories
    _n_iterations: int
    _log: TrainingLog
    _steps: QuickSteps

    def train(self) -> None:
        """Update the policy using the currently gathered rollout buffer."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        if self.policy.auxiliary is not None:
            self.recent_trajectories.add(self.rollout_buffer)
        self._log = TrainingLog(self._present(self.clip_range))
        self._steps = QuickSteps(self.policy.optimizer)
        self._n_iterations += 1
        may_move, attention_windows, critic_may_rest = True, self._attention_windows(), self._critic_may_rest()
        for epoch in range(self.n_epochs):
            if may_move:
                self._log.start_epoch()
            for i, batch in enumerate(self._minibatches(attention_windows)):
                if not may_move and isinstance(batch, TransitionSamples):
                    continue
                # In turns over epochs: the last minibatch of an epoch may always hold the same steps
                critic_rests = critic_may_rest and (epoch + i) % MINIBATCHES_PER_CRITIC_STEP != 0
                losses = self._losses(batch, critic_rests)
                if "policy_gradient_loss" in losses and self._kl_exceeded():
                    may_move = False
                    if self.verbose >= 1:
                        print(f"Early stopping at step {epoch} due to reaching max kl: {self._log.last_kl():.2f}")
                    if self.policy.memory_actor:
                        break  # attention and MLPs move together
                    continue
                self._optimize(losses, isinstance(batch, WindowSamples))
            self._n_updates += 1
            if not may_move and self.policy.memory_actor:
                break
        self._log.record(self.logger, self.rollout_buffer.values, self.rollout_buffer.returns, self.n_epochs)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", self._present(self.clip_range))
        if self.clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", self._present(self.clip_range_vf))

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        super()._update_learning_rate(optimizers)
        if not self.policy.memory_actor:
            scale_attention_learning_rate(self.policy.optimizer, ATTENTION_LEARNING_RATE_FACTOR)

    def _present(self, schedule: float | Schedule) -> float:
        """The present value of a clipping parameter, a schedule since :meth:`_setup_model`"""
        assert callable(schedule)
        return float(schedule(self._current_progress_remaining))

    def _attention_windows(self) -> Iterator[WindowSamples]:
        """The minibatches of attention beside an MLP actor, one pass over the rollout after the other"""
        while True:
            yield from self.rollout_buffer.get_windows(ATTENTION_MINIBATCH_FACTOR * self.batch_size)

    def _minibatches(self, attention_windows: Iterator[WindowSamples]) -> Iterator[TransitionSamples | WindowSamples]:
        """
        One epoch: windows for a memory actor, else transitions for the MLPs and, in between, windows for attention.

        :param attention_windows: Where to take the latter from
        """
        if self.policy.memory_actor:
            yield from self.rollout_buffer.get_windows(self.batch_size)
            return
        period = self._minibatches_per_attention_step()
        for i, transitions in enumerate(self.rollout_buffer.get_transitions(self.batch_size)):
            if i % period == 0 and self.policy.value_gate is not None:
                yield next(attention_windows)
            yield transitions

    def _minibatches_per_attention_step(self) -> int:
        gate, learns_values_alone = self.policy.value_gate, self.policy.attention_q is None
        if self.policy.aux_targets:
            return MINIBATCHES_PER_AUXILIARY_STEP
        if gate is not None and gate.share == 0 and learns_values_alone:
            return MINIBATCHES_PER_UNHEARD_STEP
        return MINIBATCHES_PER_ATTENTION_STEP

    def _critic_may_rest(self) -> bool:
        """
        :return: Whether a memory actor may learn from a minibatch alone: the critic has an encoder of its own, and nothing
            else needs the critic (the masked prediction, Q_att, a features extractor that both teach)
        """
        policy = self.policy
        is_apart = policy.memory_actor and policy.critic_trunk.encoder is not None
        teaches_features = policy.share_features_extractor and any(True for _ in policy.features_extractor.parameters())
        return is_apart and not (policy.attention_q is not None or policy.auxiliary is not None or teaches_features)

    def _losses(self, batch: TransitionSamples | WindowSamples, critic_rests: bool = False) -> dict[str, th.Tensor]:
        """
        :param batch: Transitions for the MLPs, or windows for attention
        :param critic_rests: Whether only a memory actor learns from it
        :return: The terms of the loss, weighted
        """
        if isinstance(batch, TransitionSamples):
            transitions, offsets = batch
            evaluate = self.policy.evaluate_transitions
            values, log_prob, entropy = evaluate(transitions.observations, transitions.actions, offsets)
            return self._actor_losses(transitions, log_prob, entropy) | self._value_losses(values, transitions)
        if critic_rests:
            acting = self.policy.evaluate_memory_actor(batch.windows, batch.actions, batch.offsets)
            losses = self._actor_losses(batch, acting.log_prob, acting.entropy)
            return losses | self._auxiliary_losses(batch.windows, acting.remembered)
        evaluation = self.policy.evaluate_windows(batch.windows, batch.actions, batch.offsets)
        if evaluation.added is None or self.policy.value_gate is None:
            losses = self._value_losses(evaluation.values, batch)
        else:
            mlp_values = evaluation.values - self.policy.value_gate.share * evaluation.added
            attention_value_loss = F.mse_loss(mlp_values.detach() + evaluation.added, batch.returns)
            self._log.add("attention_value_loss", attention_value_loss)
            losses = {"attention_value_loss": self.vf_coef * attention_value_loss}
        if evaluation.action_advantages is not None:
            attention_q_loss = F.mse_loss(evaluation.action_advantages, normalized(batch.advantages))
            self._log.add("attention_q_loss", attention_q_loss)
            losses["attention_q_loss"] = self.vf_coef * attention_q_loss
        if evaluation.log_prob is not None:
            losses |= self._actor_losses(batch, evaluation.log_prob, evaluation.entropy)
        return losses | self._auxiliary_losses(batch.windows, evaluation.latents.remembered)

    def _auxiliary_losses(self, windows: TrajectoryWindows, remembered: Remembered) -> dict[str, th.Tensor]:
        """
        :param windows: Windows of this rollout
        :param remembered: Of their last steps
        :return: The terms of the self-supervised loss, weighted
        """
        auxiliary: dict[str, AuxiliaryLoss] = {}
        if self.policy.live is not None:
            auxiliary |= self.policy.live.losses(windows, remembered, self.action_space)
        if self.policy.auxiliary is not None:
            n_windows, length = windows.episode_ids.shape
            drawn = self.recent_trajectories.sample(max(n_windows // 2, 2), length)
            auxiliary |= self.policy.auxiliary(self.policy, drawn, self.mask_ratio)
        for name, (loss, baseline) in auxiliary.items():
            self._log.add(f"aux_{name}_loss", loss)
            self._log.add(f"aux_{name}_baseline", baseline)
        weight = self.aux_coef / max(len(auxiliary), 1)
        return {f"aux_{name}_loss": weight * loss for name, (loss, _) in auxiliary.items()}

    def _actor_losses(
        self, batch: RolloutBufferSamples | WindowSamples, log_prob: th.Tensor, entropy: th.Tensor | None
    ) -> dict[str, th.Tensor]:
        advantages = normalized(batch.advantages) if self.normalize_advantage else batch.advantages
        log_ratio = log_prob - batch.old_log_prob
        ratio = th.exp(log_ratio)
        policy_loss = clipped_surrogate_loss(ratio, advantages, self._present(self.clip_range))
        negative_entropy = entropy_loss(entropy, log_prob)
        self._log.add_log_ratio(log_ratio)
        self._log.add("policy_gradient_loss", policy_loss)
        self._log.add("entropy_loss", negative_entropy)
        losses = {"policy_gradient_loss": policy_loss}
        if self.ent_coef != 0:  # else no gradient need be computed for it
            losses["entropy_loss"] = self.ent_coef * negative_entropy
        return losses

    def _value_losses(self, values: th.Tensor, batch: RolloutBufferSamples | WindowSamples) -> dict[str, th.Tensor]:
        clip_range_vf = None if self.clip_range_vf is None else self._present(self.clip_range_vf)
        loss = value_loss(values, batch.old_values, batch.returns, clip_range_vf)
        self._log.add("value_loss", loss)
        return {"value_loss": self.vf_coef * loss}

    def _kl_exceeded(self) -> bool:
        return self.target_kl is not None and self._log.last_kl() > 1.5 * self.target_kl

    def _optimize(self, losses: dict[str, th.Tensor], attends: bool) -> None:
        """
        One step of the optimizer.

        :param losses: The terms of the loss, weighted
        :param attends: Whether they are of windows
        :raises FloatingPointError: If one is not finite; the parameters are then still the last good ones
        """
        loss = reduce(operator.add, losses.values())
        self._steps.zero_grad()
        loss.backward()
        grad_norm = clip_gradients(self._steps.parameters, self.max_grad_norm)
        if not math.isfinite(loss.detach() + grad_norm):
            culprit = next((name for name, term in losses.items() if not th.isfinite(term)), "the gradient")
            raise FloatingPointError(
                f"{culprit} is not finite at iteration {self._n_iterations} "
                f"({self.num_timesteps} timesteps): training stopped before the optimizer step, the parameters are the last "
                "good ones and the model can be saved. Check rewards and observations for NaN or infinity, or use a smaller "
                "learning_rate."
            )
        self._steps.step()
        self._log.add("loss", loss)
        if attends:
            self._log.add("attention_grad_norm", grad_norm)
            if self.policy.auxiliary is not None:
                self.policy.auxiliary.update_key_encoder(self.policy)
