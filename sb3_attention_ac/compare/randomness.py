"""The global random generators, set aside for a while."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch as th


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """
    Inside, the global generators of Python, NumPy and PyTorch start from a seed; outside, nothing has happened to them.

    :param seed: Seed for the inside
    """
    python, numpy = random.getstate(), np.random.get_state()
    # Asking for the state of a graphics card would start it up
    cards = range(th.cuda.device_count()) if th.cuda.is_initialized() else ()
    with th.random.fork_rng(devices=cards):
        random.seed(seed)
        np.random.seed(seed)
        th.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
