"""For all tests."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm


@pytest.fixture(autouse=True)
def same_random_numbers_in_each_run():
    """Whatever ran before: a failure comes again."""
    np.random.seed(0)
    th.manual_seed(0)


@pytest.fixture
def learn_a_rollout(monkeypatch):
    """Whatever a page or a notebook says, models train for one rollout."""
    learn: Any = OnPolicyAlgorithm.learn

    def shortened(self, total_timesteps, *args, **kwargs):
        return learn(self, 1, *args, **kwargs)

    monkeypatch.setattr(OnPolicyAlgorithm, "learn", shortened)
