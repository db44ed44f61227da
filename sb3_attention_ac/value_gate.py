"""
How far an MLP actor's critic trusts the past: V(h_t) = V_mlp(s_t) + share * added(h_t), share in [0, 1].

V_mlp is SB3's critic, learned as PPO learns it; ``added`` is what attention makes of the past, fitted to what V_mlp leaves
unexplained. A share that is too large shows on the next rollout, which nothing was learned from yet: its advantages
A = return - V(h_t) then go against ``added``. The share moves along the slope of A on ``added`` until there is none left.
"""

import numpy as np
import torch as th
from torch import nn

RATE = 0.1  # of the way to the share that would have been the best on the last rollout


class ValueGate(nn.Module):
    """The share, which is saved with the policy's parameters."""

    share: th.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("share", th.zeros(()))

    def judge(self, added: np.ndarray, advantages: np.ndarray) -> None:
        """
        Move the share, before an update.

        :param added: What attention would add to the values of a rollout, whole, [n_steps, n_envs]
        :param advantages: Its advantages, estimated with the present share, [n_steps, n_envs]
        """
        square = float(np.square(added).mean())
        if square > 0:
            slope = float((advantages * added).mean()) / square
            self.share.add_(RATE * slope).clamp_(0.0, 1.0)
