"""
How far an MLP actor's critic trusts the past: V(h_t) = V_mlp(s_t) + gate * residual(h_t), gate in [0, 1].

V_mlp is SB3's critic, learned as PPO learns it; the residual is what attention makes of the past, fitted to what V_mlp leaves
unexplained. Whether it holds shows on the next rollout, which nothing was learned from yet. With A the advantages under V_mlp
alone (so that the residual cannot confirm itself through the values it is compared with), divided by their standard
deviation, and both A and the residual without their means (a constant says nothing about an action), the gate minimizes

    E[(A - gate * residual)^2] / 2 + MARGIN * gate

with expectations averaged over rollouts. Where the past explains less than about MARGIN of the variance of the advantages,
as where everything can be seen, the gate is zero and the critic PPO's.

Where after WARM_UP steps of its optimizer attention explains next to nothing, it is skipped: it learns and is evaluated in
ACTIVE of PERIOD rollouts, until it explains more.
"""

import numpy as np
import torch as th
from torch import nn

RATE = 0.1  # weight of the last rollout in the averages
MARGIN = 0.05  # of the advantages' variance. Chance: a rollout has few independent episodes
NEGLIGIBLE = 0.02  # of the advantages' variance: next to nothing
WARM_UP = 240  # optimizer steps; where the past matters at all, it shows after 100 to 200
ACTIVE, PERIOD = 2, 16  # rollouts: one to learn from, one to be evaluated on; skipped attention costs an eighth


class ValueGate(nn.Module):
    """The gate and the averages it comes from, saved with the policy's parameters."""

    gate: th.Tensor
    explained: th.Tensor  # E[A * residual]
    square: th.Tensor  # E[residual^2]
    n_steps: th.Tensor  # optimizer steps that attention has taken
    n_negligible: th.Tensor  # rollouts since it was found to explain next to nothing

    def __init__(self) -> None:
        super().__init__()
        # Counts are floats too: whoever adds noise to a state dict, as to PPO's, need not tell them apart
        for name in ("gate", "explained", "square", "n_steps", "n_negligible"):
            self.register_buffer(name, th.zeros(()))

    @property
    def is_closed(self) -> bool:
        """Whether the residual is left out of the values"""
        return float(self.gate) == 0.0

    @property
    def is_skipped(self) -> bool:
        """Whether attention need neither learn from the current rollout nor be evaluated on it"""
        return int(self.n_negligible) % PERIOD >= ACTIVE

    def skip(self) -> None:
        """Let a rollout pass."""
        self.n_negligible += 1

    def update(self, residual: np.ndarray, advantages: np.ndarray) -> None:
        """
        Move the gate, before anything is learned from a rollout.

        :param residual: What attention would add to the values at a gate of one, [n_steps, n_envs]
        :param advantages: Advantages under V_mlp alone, [n_steps, n_envs]
        """
        scale = float(advantages.std())
        if not np.isfinite(scale) or scale == 0:
            return
        advantages, residual = ((x - x.mean()) / scale for x in (advantages, residual))
        self.explained.lerp_(self.explained.new_tensor(float((advantages * residual).mean())), RATE)
        self.square.lerp_(self.square.new_tensor(float(np.square(residual).mean())), RATE)
        self.gate.copy_(((self.explained - MARGIN) / self.square.clamp(min=1e-8)).clamp(0.0, 1.0))
        negligible = self.explained < NEGLIGIBLE and self.n_steps >= WARM_UP
        self.n_negligible.copy_(self.n_negligible + 1 if negligible else th.zeros_like(self.n_negligible))
