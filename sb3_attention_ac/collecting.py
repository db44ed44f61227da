"""Collecting trajectories: the actor alone is in the step loop, the critic is asked once per rollout."""

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_attention_ac.attention_q import AttentionQ, Tilt
from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.estimates import RolloutEstimates, estimate_rollout
from sb3_attention_ac.policies import AttentionActorCriticPolicy
from sb3_attention_ac.trunk import TrunkOutput


class TrajectoryCollection(OnPolicyAlgorithm):
    """An on-policy algorithm that collects trajectories; SB3's contract with callbacks is kept."""

    policy: AttentionActorCriticPolicy
    rollout_buffer: TrajectoryRolloutBuffer

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        """As in SB3, but never below zero: the last rollout passes the total, and a negative learning rate unlearns."""
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Collect experiences with the actor alone, then ask the critic about all of them at once.

        :param env: The training environment
        :param callback: Callback that will be called at each step (and at the beginning and end of the rollout)
        :param rollout_buffer: Buffer to fill with rollouts
        :param n_rollout_steps: Number of experiences to collect per environment
        :return: True if function returned with at least `n_rollout_steps` collected, False if callback terminated rollout
            prematurely.
        """
        assert self._last_obs is not None and self._last_episode_starts is not None, "No previous observation was provided"
        assert isinstance(rollout_buffer, TrajectoryRolloutBuffer)
        self.policy.set_training_mode(False)
        n_steps = 0
        rollout_buffer.reset()
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        tilts: list[Tilt] = []
        acted: list[TrunkOutput] = []
        callback.on_rollout_start()
        actor = self.policy.start_acting(rollout_buffer)
        versions = self._parameter_versions()

        while n_steps < n_rollout_steps:
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)
            with th.no_grad():
                obs_tensor = obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
                decision = actor(obs_tensor, self._last_episode_starts)
            actions = decision.actions.cpu().numpy()
            if decision.tilt is not None:
                tilts.append(decision.tilt)
            if decision.latents is not None:
                acted.append(decision.latents)
            clipped_actions = self.policy.actions_for_env(actions)
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            self.num_timesteps += env.num_envs

            # Give access to local variables
            callback.update_locals(locals())
            if not callback.on_step():
                return False

            self._update_info_buffer(infos, dones)
            n_steps += 1
            rollout_buffer.add(self._last_obs, actions, rewards, self._last_episode_starts)
            for idx in np.flatnonzero(dones):
                terminal_obs = infos[idx].get("terminal_observation")
                if terminal_obs is not None and infos[idx].get("TimeLimit.truncated", False):
                    rollout_buffer.add_terminal_observation(int(idx), terminal_obs)
            self._last_obs = new_obs  # type: ignore[assignment]  # as in SB3: VecEnv also allows tuples, we do not
            self._last_episode_starts = dones

        if tilts:
            rollout_buffer.set_offsets(th.stack([tilt.offsets for tilt in tilts]).cpu().numpy())
        if self._parameter_versions() != versions:  # by a callback: what was made of the steps is another network's
            acted.clear()
        estimates = estimate_rollout(self.policy, rollout_buffer, new_obs, acted)
        gate, values = self.policy.value_gate, estimates.last_values.unsqueeze(1)  # [n_envs, 1]; SB3's name, for callbacks
        added = None if gate is None else estimates.added * float(gate.share)
        rollout_buffer.set_estimates(estimates.values, estimates.log_probs, added)
        rollout_buffer.compute_returns_and_advantage(values, dones, estimates.terminal_values)
        if gate is not None:
            self.logger.record("rollout/attention_share", float(gate.share))
            gate.judge(estimates.added, rollout_buffer.advantages)
        if self.policy.attention_q is not None:
            self._judge_attention_q(self.policy.attention_q, estimates, tilts)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _parameter_versions(self) -> list[int]:
        """:return: A number for each parameter that grows when it is written to"""
        return [parameter._version for parameter in self.policy.parameters()]

    def _judge_attention_q(self, attention_q: AttentionQ, estimates: RolloutEstimates, tilts: list[Tilt]) -> None:
        """Let the gate see how A_att has done on this rollout, which nothing was learned from yet, and log it."""
        beta = kl = 0.0
        if tilts:
            whole = Tilt(*map(th.cat, zip(*tilts, strict=True)))
            beta, kl = float(whole.beta.mean()), float(attention_q.divergence(whole, self.policy.fixed_log_std()).mean())
        self.logger.record("rollout/attention_q_beta", beta)
        self.logger.record("rollout/attention_q_kl", kl)
        attention_q.judge(estimates.action_advantages, self.rollout_buffer.advantages)
        self.logger.record("rollout/attention_q_evidence", float(attention_q.evidence))
        self.logger.record("rollout/attention_q_open", float(attention_q.is_open))
