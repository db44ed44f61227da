"""
Q_att at action time: an advantage read from what attention has seen tilts the action distribution,

    log pi'(a | h_t) = log pi_theta(a | h_t) + beta * A_att(h_t, a) + const,

so that with Q := log pi_theta the deterministic action is argmax_a [Q + beta * A_att]. A_att is linear in the score
z(a) = d log pi_theta(a) / d parameters (compatible function approximation, Sutton et al. 2000), hence centred,
E_pi[A_att] = 0, and the tilt is an offset of the logits, or of the means of a Box.

To second order KL(pi' || pi_theta) = beta^2 / 2 * Var_pi[A_att]: beta is chosen so that this is at most ``KL_BOUND`` in every
state. A gate keeps beta at zero until predictions made before an update have agreed with the advantages that then came.
"""

import numpy as np
import torch as th
from torch import nn

from sb3_attention_ac.networks.distributions import ActionDistribution, Categoricals, DiagonalGaussian
from sb3_attention_ac.type_aliases import ActionParameters

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


class AttentionQ(nn.Module):
    """
    The head for A_att, and the gate.

    :param latent_dim: Width of the latents it reads
    :param distribution: The policy's action distribution
    :param n_parameters: Number of its parameters
    :raises ValueError: If the distribution is neither categorical nor Gaussian
    """

    evidence: th.Tensor

    def __init__(self, latent_dim: int, distribution: ActionDistribution, n_parameters: int):
        super().__init__()
        self.use(distribution)
        last = nn.Linear(HIDDEN_DIM, n_parameters)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.Linear(latent_dim, HIDDEN_DIM), nn.Tanh(), last)
        self.register_buffer("evidence", th.zeros(()))
        self._tilted: list[tuple[float, float]] = []  # mean beta and KL divergence of each step of the rollout

    def use(self, distribution: ActionDistribution) -> None:
        """
        :param distribution: The policy's action distribution
        :raises ValueError: If it is neither categorical nor Gaussian
        """
        if not isinstance(distribution, Categoricals | DiagonalGaussian):
            raise ValueError(
                f"attention_q=True tilts categorical and Gaussian actions, not {type(distribution).__name__}: leave it out."
            )
        self.distribution = distribution

    @property
    def is_open(self) -> bool:
        """Whether actions are tilted"""
        return bool(self.evidence > OPEN_ABOVE)

    def advantages(self, latent: th.Tensor, given: ActionParameters, actions: th.Tensor) -> th.Tensor:
        """
        :param latent: [N, latent_dim]; no gradient goes into it
        :param given: The distributions that the actions were drawn from
        :param actions: As the buffer stores them, [N, action_dim]
        :return: A_att(h, a), in units of the advantages' standard deviation, [N]
        """
        weights: th.Tensor = self.head(latent.detach())
        if not isinstance(self.distribution, Categoricals):
            assert given.log_std is not None
            return (weights * ((actions - given.parameters) / given.log_std.exp()).detach()).sum(dim=-1)
        with th.no_grad():
            probabilities = self.distribution.log_probs(given).exp()  # [N, n_groups, most]
            score = self.distribution.one_hot(actions) - probabilities
        return (self.distribution.grouped(weights) * score).sum(dim=(-2, -1))

    @th.no_grad()
    def tilt(self, latent: th.Tensor, given: ActionParameters, in_rollout: bool = False) -> th.Tensor:
        """
        :param latent: [N, latent_dim]
        :param given: The distributions before
        :param in_rollout: Whether to note beta and KL divergence, to be logged with the rollout
        :return: What to add to their parameters, whether or not the gate is open, [N, n_parameters]
        """
        weights: th.Tensor = self.head(latent)
        if isinstance(self.distribution, Categoricals):
            probabilities, grouped = self.distribution.log_probs(given).exp(), self.distribution.grouped(weights)
            mean, square = ((probabilities * power).sum(dim=-1) for power in (grouped, grouped.square()))
            variance = (square - mean.square()).sum(dim=-1)
        else:
            assert given.log_std is not None
            variance, weights = weights.square().sum(dim=-1), weights * given.log_std.exp()
        beta = (2 * KL_BOUND / variance.clamp(min=1e-12)).sqrt().clamp(max=MAX_BETA)
        offsets = beta.unsqueeze(-1) * weights
        if in_rollout:
            self._tilted.append((float(beta.mean()), float(self.divergence(given, offsets).mean())))
        return offsets

    def divergence(self, given: ActionParameters, offsets: th.Tensor) -> th.Tensor:
        """
        :param given: The distributions before
        :param offsets: From :meth:`tilt`, [N, n_parameters]
        :return: KL(pi' || pi_theta), exactly, [N]
        """
        if given.log_std is not None:
            return (offsets / given.log_std.exp()).square().sum(dim=-1) * 0.5
        assert isinstance(self.distribution, Categoricals)
        after = self.distribution.log_probs(given._replace(parameters=given.parameters + offsets))
        before, floor = self.distribution.log_probs(given), th.finfo(after.dtype).min
        return (after.exp() * (after.clamp(min=floor) - before.clamp(min=floor))).sum(dim=(-2, -1))

    def update_gate(self, predicted: np.ndarray, advantages: np.ndarray) -> dict[str, float]:
        """
        Gather evidence, before an update: do predictions agree with what was not used to make them?

        :param predicted: A_att of the actions taken in a rollout, [n_steps, n_envs]
        :param advantages: Their estimated advantages, [n_steps, n_envs]
        :return: What to log
        """
        agreement = predicted * (advantages - advantages.mean())
        n_steps, n_envs = agreement.shape
        block = min(BLOCK, n_steps)
        whole = agreement[: n_steps // block * block].reshape(-1, block, n_envs).mean(axis=1)  # [n_blocks, n_envs]
        error = whole.std(ddof=1) / np.sqrt(whole.size) if whole.size >= MIN_BLOCKS else 0.0
        evidence = float(np.clip(whole.mean() / error, -MAX_EVIDENCE, MAX_EVIDENCE)) if error > 0 else 0.0
        self.evidence.mul_(DECAY).add_((1 - DECAY) * evidence)
        beta, kl = np.mean(self._tilted, axis=0) if self._tilted else (0.0, 0.0)
        self._tilted = []
        return {"beta": float(beta), "kl": float(kl), "evidence": float(self.evidence), "open": float(self.is_open)}
