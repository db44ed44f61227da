"""
Next-step prediction: from the encoder's hidden state at a step and the action to be taken, the next reward and observation.

It teaches the encoder that the actor reads (a memory actor's, else the critic's) what to look up. It reads the hidden state
itself and the current step, not an MLP's latent: that would have to serve prediction as well as action or value. Unlike the
masked prediction it looks at the past alone (causal mask), so that it can be asked while acting.
"""

from typing import NamedTuple

import torch as th
import torch.nn.functional as F
from torch import nn

from sb3_attention_ac.auxiliary.normalization import TargetNormalizer
from sb3_attention_ac.distributed import averaged
from sb3_attention_ac.type_aliases import AuxiliaryLoss, TrajectoryWindows

HIDDEN_DIM = 64
LARGEST_SURPRISE = 25.0  # of a single feature, five standard deviations: one that hardly ever changes must not decide alone


class NextStep(NamedTuple):
    """
    What is expected of the next step.

    :param rewards: r_t, [N, n]
    :param features: Features of s_{t+1} (for a vector observation: the observation itself), [N, n, F]
    """

    rewards: th.Tensor
    features: th.Tensor


class NextStepPrediction(nn.Module):
    """
    Heads for the next reward and the next observation's features.

    :param hidden_dim: Width of the encoder's hidden states
    :param action_dim: Width of encoded actions
    :param features_dim: Width of the features of an observation
    """

    def __init__(self, hidden_dim: int, action_dim: int, features_dim: int):
        super().__init__()
        self.fc = nn.Linear(hidden_dim + features_dim + action_dim, HIDDEN_DIM)
        self.action_gate = nn.Linear(action_dim, HIDDEN_DIM)
        self.reward = nn.Linear(HIDDEN_DIM, 1)
        self.change = nn.Linear(HIDDEN_DIM, features_dim)
        self.reward_normalizer = TargetNormalizer(1)
        self.features_normalizer = TargetNormalizer(features_dim)

    def forward(self, hidden: th.Tensor, features: th.Tensor, actions: th.Tensor) -> NextStep:
        """
        :param hidden: The encoder's hidden states, [N, n, hidden_dim]
        :param features: Normalized features of s_t, [N, n, F]
        :param actions: Encoded a_t, [N, n, action_dim]
        :return: Normalized predictions; of the features, how they change from s_t to s_{t+1}
        """
        # A product, as what an action brings often depends on whether it fits the past
        joint = th.tanh(self.fc(th.cat([hidden, features, actions], dim=-1))) * self.action_gate(actions)
        return NextStep(self.reward(joint).squeeze(-1), self.change(joint))

    def losses(
        self, windows: TrajectoryWindows, hidden: th.Tensor, features: th.Tensor, previous_actions: th.Tensor
    ) -> dict[str, AuxiliaryLoss]:
        """
        Learn from windows: what came after each step is stored in the step that follows it.

        :param windows: N windows
        :param hidden: Hidden states of their last n steps, [N, n, hidden_dim]
        :param features: Features of every step, [N, W, F]
        :param previous_actions: Encoded a_{t-1} of every step, [N, W, action_dim]
        :return: Mean squared errors beside those of a guess: the mean reward, and the observation as it is; none for n = 1
        """
        n = hidden.shape[1]
        if n == 1:  # no step follows
            return {}
        with th.no_grad():
            features = self.features_normalizer(features[:, -n:])
            rewards = self.reward_normalizer(windows.previous_rewards[:, -n + 1 :, None]).squeeze(-1)
            goes_on = ~windows.episode_starts[:, -n + 1 :]  # [N, n - 1]; else the observation is of another episode
            changes = features[:, 1:] - features[:, :-1]
            n_errors = (features.shape[-1] * averaged(goes_on.sum())).clamp(min=1)
            weight = (goes_on / n_errors).float().unsqueeze(-1)  # of one error in their mean
            copy_error = (changes.square() * weight).sum()
        expected = self(hidden[:, :-1], features[:, :-1], previous_actions[:, -n + 1 :])
        observation_error = ((expected.features - changes).square() * weight).sum()
        return {
            "next_reward": AuxiliaryLoss(F.mse_loss(expected.rewards, rewards), rewards.square().mean()),
            "next_observation": AuxiliaryLoss(observation_error, copy_error),
        }

    @th.no_grad()
    def surprise(self, hidden: th.Tensor, before: th.Tensor, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param hidden: The encoder's hidden states at the step before, [N, hidden_dim]
        :param before: Features of that step, [N, F]
        :param features: Features of the step itself, [N, F]
        :param actions: Encoded actions between them, [N, action_dim]
        :return: Mean squared error of what was expected of the features, in units of their variance, [N]; that of each feature
            levels off below ``LARGEST_SURPRISE``
        """
        change = (features - before) / self.features_normalizer.std
        before = self.features_normalizer(before.unsqueeze(1)).squeeze(1)
        squared = (self(hidden, before, actions).features - change).square()
        surprise: th.Tensor = (squared.reciprocal() + 1 / LARGEST_SURPRISE).reciprocal().mean(dim=-1)
        return surprise

    @th.no_grad()
    def predict(self, hidden: th.Tensor, features: th.Tensor, actions: th.Tensor) -> NextStep:
        """
        :param hidden: Hidden states, [N, n, hidden_dim]
        :param features: Features of these steps, [N, n, F]
        :param actions: Encoded candidate actions, [N, n, action_dim]
        :return: What is expected of the next step, in the units of rewards and features
        """
        features = self.features_normalizer(features)
        expected = self(hidden, features, actions)
        rewards = self.reward_normalizer.denormalize(expected.rewards.unsqueeze(-1)).squeeze(-1)
        return NextStep(rewards, self.features_normalizer.denormalize(features + expected.features))
