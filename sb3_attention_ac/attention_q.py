"""
Q_att at action time: an advantage read from what attention gathered tilts the action distribution,

    log pi'(a | h_t) = log pi_theta(a | h_t) + beta * A_att(h_t, a) + const,

so that with Q := log pi_theta the deterministic action is argmax_a [Q + beta * A_att]. A_att is linear in the score
z(a) = d log pi_theta(a) / d parameters (compatible function approximation, Sutton et al. 2000), hence centred,
E_pi[A_att] = 0, and the tilt is an offset of the logits, or of the means of a Box.

To second order KL(pi' || pi_theta) = beta^2 / 2 * Var_pi[A_att]: beta is chosen so that this stays below ``KL_BOUND`` in every
state. A gate keeps beta at zero until predictions made before an update have agreed with the advantages that then came.
"""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn
from torch.distributions import Bernoulli, Categorical, kl_divergence

from sb3_attention_ac.trajectory import encode_actions

HIDDEN_DIM = 64
KL_BOUND = 0.01
MAX_BETA = 1.0  # A_att is in units of the advantages' standard deviation
BLOCK = 64  # advantages of neighbouring steps are correlated: this many count as one observation
MIN_BLOCKS = 8  # a rollout of fewer says nothing
DECAY = 0.8  # of the evidence, per rollout
# One rollout's evidence is about standard normal without any truth in the predictions; then its average has a standard
# deviation of sqrt((1 - DECAY) / (1 + DECAY)) = 1/3, and this is four of them
OPEN_ABOVE = 4 / 3
MAX_EVIDENCE = 3.0  # of one rollout: none opens the gate alone


class Tilt(NamedTuple):
    """
    :param parameters: Logits, or means of a Box, before the tilt, [N, n_parameters]
    :param offsets: What is added to them, [N, n_parameters]
    :param beta: [N]
    """

    parameters: th.Tensor
    offsets: th.Tensor
    beta: th.Tensor


class AttentionQ(nn.Module):
    """
    The head for A_att, and the gate.

    :param latent_dim: Width of the latents it reads
    :param action_space: Box, Discrete, MultiDiscrete or MultiBinary
    :param n_parameters: Number of the action distribution's parameters
    """

    evidence: th.Tensor

    def __init__(self, latent_dim: int, action_space: spaces.Space[Any], n_parameters: int):
        super().__init__()
        self.action_space = action_space
        last = nn.Linear(HIDDEN_DIM, n_parameters)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.Linear(latent_dim, HIDDEN_DIM), nn.Tanh(), last)
        self.register_buffer("evidence", th.zeros(()))

    @property
    def is_open(self) -> bool:
        """Whether actions are tilted"""
        return bool(self.evidence > OPEN_ABOVE)

    def _groups(self) -> list[int]:
        """How many logits go into each softmax"""
        space = self.action_space
        return [int(n) for n in space.nvec] if isinstance(space, spaces.MultiDiscrete) else [int(spaces.flatdim(space))]

    def _probabilities(self, parameters: th.Tensor) -> th.Tensor:
        """:param parameters: Logits, [..., n_parameters]"""
        if isinstance(self.action_space, spaces.MultiBinary):
            return parameters.sigmoid()
        return th.cat([logits.softmax(dim=-1) for logits in parameters.split(self._groups(), dim=-1)], dim=-1)

    def _score(self, actions: th.Tensor, parameters: th.Tensor, log_std: th.Tensor | None) -> th.Tensor:
        """z(a), for a Box in units of the standard deviation, [..., n_parameters]"""
        if log_std is not None:
            return (actions - parameters) / log_std.exp()
        return encode_actions(actions, self.action_space) - self._probabilities(parameters)

    def _variance(self, weights: th.Tensor, parameters: th.Tensor) -> th.Tensor:
        """Var_pi[weights . z(a)], [...]"""
        if isinstance(self.action_space, spaces.Box):
            return weights.square().sum(dim=-1)
        p = self._probabilities(parameters)
        if isinstance(self.action_space, spaces.MultiBinary):
            return (p * (1 - p) * weights.square()).sum(dim=-1)
        mean, square = ((p * power).split(self._groups(), dim=-1) for power in (weights, weights.square()))
        return sum((s.sum(dim=-1) - m.sum(dim=-1).square() for m, s in zip(mean, square, strict=True)), th.zeros(()))

    def advantages(
        self, latents: th.Tensor, actions: th.Tensor, parameters: th.Tensor, log_std: th.Tensor | None
    ) -> th.Tensor:
        """
        :param latents: [..., latent_dim]; no gradient goes into them
        :param actions: As the buffer stores them, [..., action_dim]
        :param parameters: Logits, or means of a Box, of the distribution they were drawn from, [..., n_parameters]
        :param log_std: Logarithm of its standard deviations (Box), else None
        :return: A_att(h, a), in units of the advantages' standard deviation, [...]
        """
        with th.no_grad():
            score = self._score(actions, parameters, log_std)
        advantages: th.Tensor = (self.head(latents.detach()) * score).sum(dim=-1)
        return advantages

    @th.no_grad()
    def tilt(self, latents: th.Tensor, parameters: th.Tensor, log_std: th.Tensor | None) -> Tilt:
        """
        :param latents: [N, latent_dim]
        :param parameters: Logits, or means of a Box, [N, n_parameters]
        :param log_std: Logarithm of the standard deviations (Box), else None
        :return: What to add to the parameters, whether or not the gate is open
        """
        weights = self.head(latents)
        variance = self._variance(weights, parameters)
        beta = (2 * KL_BOUND / variance.clamp(min=1e-12)).sqrt().clamp(max=MAX_BETA)
        steps = weights if log_std is None else weights * log_std.exp()
        return Tilt(parameters, beta.unsqueeze(-1) * steps, beta)

    def divergence(self, tilt: Tilt, log_std: th.Tensor | None) -> th.Tensor:
        """
        :param tilt: From :meth:`tilt`
        :param log_std: Logarithm of the standard deviations (Box), else None
        :return: KL(pi' || pi_theta), exactly, [N]
        """
        before, after = tilt.parameters, tilt.parameters + tilt.offsets
        if log_std is not None:
            return (tilt.offsets / log_std.exp()).square().sum(dim=-1) * 0.5
        if isinstance(self.action_space, spaces.MultiBinary):
            return kl_divergence(Bernoulli(logits=after), Bernoulli(logits=before)).sum(dim=-1)
        pairs = zip(after.split(self._groups(), dim=-1), before.split(self._groups(), dim=-1), strict=True)
        divergences = [kl_divergence(Categorical(logits=new), Categorical(logits=old)) for new, old in pairs]
        return th.stack(divergences).sum(dim=0)

    def judge(self, expected: np.ndarray, advantages: np.ndarray) -> None:
        """
        Gather evidence for the gate, before an update: do predictions agree with what was not used to make them?

        :param expected: A_att of the actions taken, [n_steps, n_envs]
        :param advantages: Their estimated advantages, [n_steps, n_envs]
        """
        agreement = expected * (advantages - advantages.mean())
        n_steps, n_envs = agreement.shape
        block = min(BLOCK, n_steps)
        whole = agreement[: n_steps // block * block].reshape(-1, block, n_envs).mean(axis=1)  # [n_blocks, n_envs]
        error = whole.std(ddof=1) / np.sqrt(whole.size) if whole.size >= MIN_BLOCKS else 0.0
        evidence = float(np.clip(whole.mean() / error, -MAX_EVIDENCE, MAX_EVIDENCE)) if error > 0 else 0.0
        self.evidence.mul_(DECAY).add_((1 - DECAY) * evidence)
