"""Tensors that depend on sizes and devices alone, made once."""

from collections.abc import Callable
from functools import lru_cache, wraps

import torch as th


def cached(function: Callable[..., th.Tensor]) -> Callable[..., th.Tensor]:
    """
    :param function: Makes a tensor that depends on its arguments alone
    :return: The same with its latest results cached. They are made outside inference mode, as inference tensors cannot take
        part in training later; nothing is cached while compiling, when results are not real tensors
    """
    kept = lru_cache(maxsize=8)(th.inference_mode(False)(function))

    @wraps(function)
    def get(*arguments: object) -> th.Tensor:
        return function(*arguments) if th.compiler.is_compiling() else kept(*arguments)

    return get
