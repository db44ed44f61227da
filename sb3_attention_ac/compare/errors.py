"""Errors a user can act upon."""

from collections.abc import Iterable

from sb3_attention_ac.argument_names import closest_names


class CompareError(Exception):
    """Something asked for is impossible; the message names it, what is possible, and what to do."""


class CorruptResultError(CompareError):
    """A result file that exists but cannot be trusted."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> CompareError:
    """
    :param kind: What the name stands for, e.g. ``"algorithm"``
    :param name: The name that is not known
    :param known: All names that are
    :return: Error that offers the closest known names, or the first of all where none is close
    """
    return CompareError(f"Unknown {kind} {name!r}; {closest_names(name, known)}.")
