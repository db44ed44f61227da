"""For all tests."""

import pytest

from sb3_attention_ac import trajectory_policy


@pytest.fixture(autouse=True)
def chunks_as_short_as_contexts(monkeypatch):
    """With contexts of a few steps, so that a short rollout has several chunks and a memory is made anew now and then."""
    monkeypatch.setattr(trajectory_policy, "SHORTEST_CHUNK", 1)
