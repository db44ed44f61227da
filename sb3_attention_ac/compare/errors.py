"""Errors a user can act upon."""

from collections.abc import Iterable
from difflib import get_close_matches


class CompareError(Exception):
    """Something asked for is impossible; the message names it, what is possible, and what to do."""


class CorruptResultError(CompareError):
    """A result file that exists but cannot be trusted."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> CompareError:
    """
    :param kind: What the name stands for, e.g. ``"algorithm"``
    :param name: The name that is not known
    :param known: All names that are
    :return: Error that offers the closest known names, or all of them where none is close
    """
    names = sorted(known)
    lower = {candidate.lower(): candidate for candidate in names}
    close = [lower[match] for match in get_close_matches(name.lower(), lower, n=5, cutoff=0.6)]
    offer = f"the closest known names are: {', '.join(close)}" if close else f"known are: {', '.join(names[:40])}"
    return CompareError(f"Unknown {kind} {name!r}; {offer}.")
