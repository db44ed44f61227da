"""Chunks of one length and minibatches of one size, wherever the rollout allows it."""

import warnings

import pytest
from test_buffers import make
from test_run import SMALL, TINY, random_env

from sb3_attention_ac import AAC
from sb3_attention_ac.minibatch_sizes import chunk_length, whole_chunks


@pytest.mark.parametrize(
    ("n_steps", "longest", "expected"),
    [
        (10, 5, 5), (10, 6, 5), (10, 10, 10), (10, 100, 10), (7, 1, 1), (1, 1, 1), (64, 33, 32), (128, 48, 32), (256, 40, 32),
        (1000, 32, 25), (10, 4, 4), (5, 2, 2), (11, 10, 6), (127, 32, 32), (12, 7, 6), (12, 8, 6), (9, 6, 5),
    ],
)  # fmt: skip
def test_length_of_chunks(n_steps, longest, expected):
    assert chunk_length(n_steps, longest) == expected
    assert make(n_steps, chunk_length=longest).chunk_length == expected


@pytest.mark.parametrize(
    ("batch_size", "n_steps", "n_envs", "length", "expected"),
    [
        (256, 128, 16, 32, 256),
        (256, 128, 16, 64, 256),
        (256, 40, 16, 40, 160),  # of 16 chunks four, not six
        (256, 16, 2, 16, 32),  # the whole rollout
        (10, 64, 4, 32, 32),  # one chunk at least
        (256, 11, 2, 6, 12),  # chunks of 6 and 5: no size fits
        (18, 11, 4, 6, 18),  # likewise, so the largest
        (96, 64, 7, 32, 64),  # of 14 chunks two, not three
        (160, 32, 7, 32, 160),  # of 7 chunks five: one is too few
        (64, 100, 10, 1, 50),
    ],
)
def test_transitions_of_whole_chunks(batch_size, n_steps, n_envs, length, expected):
    assert whole_chunks(batch_size, n_steps, n_envs, length) == expected


def memory_actor(context_length: int, n_steps: int, n_envs: int, batch_size: int | None) -> AAC:
    kwargs = {**SMALL, "n_steps": n_steps, "batch_size": batch_size}
    policy_kwargs = {**TINY, "memory_actor": True, "context_length": context_length}
    return AAC("MlpPolicy", random_env(n_envs=n_envs), policy_kwargs=policy_kwargs, **kwargs)


@pytest.mark.parametrize(("n_steps", "n_envs"), [(128, 16), (256, 8), (40, 16), (127, 3)])
@pytest.mark.parametrize("context_length", [20, 40, 48, 100])
def test_defaults_do_not_warn(context_length, n_steps, n_envs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = memory_actor(context_length, n_steps, n_envs, None)
    assert model.batch_size % model.policy.chunk_length == 0


@pytest.mark.parametrize(
    ("batch_size", "n_steps", "n_envs"),
    [(size, *rollout) for size in (30, 96, 100, 250, 5000) for rollout in ((128, 4), (40, 16))] + [(64, 40, 16)],
)
@pytest.mark.parametrize("context_length", [20, 48])
def test_the_size_that_a_warning_names_does_not_warn(batch_size, context_length, n_steps, n_envs):
    with pytest.warns(UserWarning, match=r"Without this warning: batch_size=\d+\.$") as caught:
        memory_actor(context_length, n_steps, n_envs, batch_size)
    (warning,) = caught
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory_actor(context_length, n_steps, n_envs, int(str(warning.message).split("batch_size=")[-1][:-1]))
