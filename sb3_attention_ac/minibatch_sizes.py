"""How a rollout is cut into chunks of steps, and how many of a memory actor's chunks make a minibatch."""

import math


def chunk_length(n_steps: int, longest: int) -> int:
    """
    :param n_steps: Steps of a rollout
    :param longest: How long a chunk may be
    :return: The longest that divides the rollout, if more than half of what is allowed; else one that makes chunks as equal as
        can be
    """
    return _divisor(n_steps, longest) or math.ceil(n_steps / math.ceil(n_steps / longest))


def whole_chunks(batch_size: int, n_steps: int, n_envs: int, length: int) -> int:
    """
    :param batch_size: Transitions in a minibatch, at most
    :param n_steps: Steps per environment in a rollout
    :param n_envs: Number of environments
    :param length: Length of a chunk
    :return: Transitions in a minibatch of whole chunks, at least one. A factor of the rollout, if one is more than half of it
    """
    n_chunks = n_envs * (n_steps // length)
    most = min(max(batch_size // length, 1), n_chunks)
    fitting = _divisor(n_chunks, most) if n_steps % length == 0 else None
    return (fitting or most) * length


def _divisor(number: int, most: int) -> int | None:
    """:return: The largest divisor of a number that is at most ``most``, and more than half of it; None if there is none"""
    most = min(most, number)
    return next((divisor for divisor in range(most, most // 2, -1) if number % divisor == 0), None)
