"""Devices: one that is missing is refused, because Stable-Baselines3 would silently use the CPU instead."""

import torch as th

from sb3_attention_ac.compare.errors import CompareError


def check_device(name: str) -> None:
    """
    :param name: Device of PyTorch, or ``"auto"``
    :raises CompareError: If there is no such device here
    """
    if name == "auto":
        return
    advice = "Give --device cpu, or auto for a GPU if there is one."
    try:
        device = th.device(name)
    except RuntimeError as error:
        raise CompareError(
            f"The device {name!r} is unknown to PyTorch; use for example 'cpu', 'cuda' or 'cuda:1'. {advice}"
        ) from error
    if device.type == "cuda":  # asked like this, it is not started up, which would take memory on it
        found = th.cuda.device_count() if th.cuda.is_available() else 0
        if (device.index or 0) >= found:
            there = f"{found} GPU{'s, counted from 0,' if found > 1 else ''}" if found else "no GPU"
            raise CompareError(f"The device {name!r} was given, but PyTorch finds {there} on this machine. {advice}")
        return
    try:
        th.empty(1, device=device)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise CompareError(f"The device {name!r} was given, but PyTorch cannot use it on this machine. {advice}") from error
