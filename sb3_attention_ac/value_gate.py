"""
How far an MLP actor's critic trusts the past: V(h_t) = V_mlp(s_t) + share * added(h_t), share in [0, 1].

V_mlp is SB3's critic, learned as PPO learns it; ``added`` is what attention makes of the past, fitted to what V_mlp leaves
unexplained. Whether it holds shows on the next rollout, which nothing was learned from yet. With A = return - V_mlp(s_t) of
its steps, divided by its standard deviation, and both A and ``added`` without their means (a constant says nothing about an
action), the share is what minimizes

    E[(A - share * added)^2] / 2 + MARGIN * share

with expectations averaged over rollouts. Where the past explains less than about MARGIN of the variance of the advantages,
as where everything can be seen, the share is zero and the critic PPO's.
"""

import numpy as np
import torch as th
from torch import nn

RATE = 0.1  # weight of the last rollout in the averages
MARGIN = 0.05  # of the advantages' variance. Chance: a rollout has few independent episodes


class ValueGate(nn.Module):
    """The share and the averages it comes from, saved with the policy's parameters."""

    share: th.Tensor
    explained: th.Tensor  # E[A * added]
    square: th.Tensor  # E[added^2]

    def __init__(self) -> None:
        super().__init__()
        for name in ("share", "explained", "square"):
            self.register_buffer(name, th.zeros(()))

    def judge(self, added: np.ndarray, advantages: np.ndarray) -> None:
        """
        Move the share, before an update.

        :param added: What attention would add to the values of a rollout, whole, [n_steps, n_envs]
        :param advantages: Its advantages, estimated with the present share, [n_steps, n_envs]
        """
        unexplained = advantages + float(self.share) * added
        scale = float(unexplained.std())
        if not np.isfinite(scale) or scale == 0:
            return
        unexplained, added = ((x - x.mean()) / scale for x in (unexplained, added))
        self.explained.lerp_(self.explained.new_tensor(float((unexplained * added).mean())), RATE)
        self.square.lerp_(self.square.new_tensor(float(np.square(added).mean())), RATE)
        self.share.copy_(((self.explained - MARGIN) / self.square.clamp(min=1e-8)).clamp(0.0, 1.0))
