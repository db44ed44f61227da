"""
The live prediction: from what is remembered at a step and the action to be taken, the next reward and observation.

It teaches the encoder that the actor reads (a memory actor's, else the critic's) what to look up. It reads the encoder itself
and the present step: an MLP's latent that it read would have to serve prediction beside action or value.

Unlike the masked prediction it looks at the past alone (causal mask), so that it can be asked while acting.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch as th
import torch.nn.functional as F
from gymnasium import spaces
from torch import nn

from sb3_attention_ac.auxiliary import AuxiliaryLoss, normalized
from sb3_attention_ac.trajectory import TrajectoryWindows, encode_actions

if TYPE_CHECKING:
    from sb3_attention_ac.evaluations import Remembered
    from sb3_attention_ac.trajectory_policy import TrajectoryPolicy

HIDDEN_DIM = 64


class NextStep(NamedTuple):
    """
    What is expected of the next step.

    :param rewards: r_t, [N, n]
    :param features: Features of s_{t+1} (for a vector observation: the observation itself), [N, n, F]
    """

    rewards: th.Tensor
    features: th.Tensor


class LivePrediction(nn.Module):
    """
    Heads for the next reward and the next observation's features.

    :param gathered_dim: Width of what the encoder gathers
    :param action_dim: Width of encoded actions
    :param features_dim: Width of the features of an observation
    """

    def __init__(self, gathered_dim: int, action_dim: int, features_dim: int):
        super().__init__()
        self.hidden = nn.Linear(gathered_dim + features_dim + action_dim, HIDDEN_DIM)
        self.gate = nn.Linear(action_dim, HIDDEN_DIM)
        self.reward = nn.Linear(HIDDEN_DIM, 1)
        self.change = nn.Linear(HIDDEN_DIM, features_dim)
        # Targets of any scale: normalized by their running mean and standard deviation
        self.reward_scale = nn.BatchNorm1d(1, affine=False)
        self.features_scale = nn.BatchNorm1d(features_dim, affine=False)

    def forward(self, gathered: th.Tensor, features: th.Tensor, actions: th.Tensor) -> NextStep:
        """
        :param gathered: What the encoder gathered, [N, n, gathered_dim]
        :param features: Normalized features of s_t, [N, n, F]
        :param actions: Encoded a_t, [N, n, action_dim]
        :return: Normalized predictions; of the features, how they change from s_t to s_{t+1}
        """
        # A product, as what an action brings often depends on whether it fits the past: docs/research.md
        hidden = th.tanh(self.hidden(th.cat([gathered, features, actions], dim=-1))) * self.gate(actions)
        return NextStep(self.reward(hidden).squeeze(-1), self.change(hidden))

    def losses(
        self, windows: TrajectoryWindows, remembered: "Remembered", action_space: spaces.Space[Any]
    ) -> dict[str, AuxiliaryLoss]:
        """
        Learn from windows: what came after each step is written in the step behind it.

        :param windows: N windows
        :param remembered: Of their last n steps
        :param action_space: What their actions are from
        :return: Mean squared errors beside those of a guess: the mean reward, and the observation as it is; none for n = 1
        """
        gathered = remembered.gathered
        assert gathered is not None, "there is no aux_loss without attention"
        n = gathered.shape[1]
        if n == 1:  # there is no step behind
            return {}
        with th.no_grad():
            features = normalized(self.features_scale, remembered.features[:, -n:])
            rewards = normalized(self.reward_scale, windows.previous_rewards[:, -n + 1 :, None]).squeeze(-1)
            actions = encode_actions(windows.previous_actions[:, -n + 1 :], action_space)
            goes_on = ~windows.episode_starts[:, -n + 1 :]  # [N, n - 1]; else the observation is of another episode
            changes = features[:, 1:] - features[:, :-1]
            share = (goes_on / (features.shape[-1] * goes_on.sum()).clamp(min=1)).unsqueeze(-1)  # of one error in their mean
            copy_error = (changes.square() * share).sum()
        expected = self(gathered[:, :-1], features[:, :-1], actions)
        observation_error = ((expected.features - changes).square() * share).sum()
        return {
            "live_reward": AuxiliaryLoss(F.mse_loss(expected.rewards, rewards), rewards.square().mean()),
            "live_observation": AuxiliaryLoss(observation_error, copy_error),
        }

    @th.no_grad()
    def expect(self, policy: "TrajectoryPolicy", windows: TrajectoryWindows, actions: th.Tensor) -> NextStep:
        """
        :param policy: The policy this belongs to
        :param windows: N windows
        :param actions: Candidate actions of their last n steps, as the buffer stores them, [N, n, action_dim]
        :return: What is expected of the next step, in the units of rewards and features
        """
        n = actions.shape[1]
        gathered, features = policy.window_latents(windows, n).remembered
        features = normalized(self.features_scale, features[:, -n:])
        expected = self(gathered, features, encode_actions(actions, policy.action_space))
        rewards = _denormalized(self.reward_scale, expected.rewards.unsqueeze(-1)).squeeze(-1)
        return NextStep(rewards, _denormalized(self.features_scale, features + expected.features))


def _denormalized(scale: nn.BatchNorm1d, x: th.Tensor) -> th.Tensor:
    """The inverse of :func:`normalized`, by the running statistics"""
    assert scale.running_mean is not None and scale.running_var is not None
    return x * (scale.running_var + scale.eps).sqrt() + scale.running_mean


def predict_next(policy: "TrajectoryPolicy", windows: TrajectoryWindows, actions: th.Tensor) -> NextStep:
    """
    The next reward and observation to be expected of candidate actions.

    :param policy: A policy trained with ``aux_loss=["live"]`` (or a list with "live" in it)
    :param windows: What has happened so far, e.g. from :func:`~sb3_attention_ac.inspection.collect_trajectory`
    :param actions: Candidate actions of the last n steps of each window, as the buffer stores them, [N, n, action_dim]
    :return: Expected rewards [N, n] and features of the next observations [N, n, F]
    :raises ValueError: If the policy was made without the live prediction
    """
    if policy.live is None:
        raise ValueError(f"This policy's aux_loss has the targets {list(policy.aux_targets)}: train with aux_loss=['live'].")
    policy.set_training_mode(False)
    return policy.live.expect(policy, windows, actions)
