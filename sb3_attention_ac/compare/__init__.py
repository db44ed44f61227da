"""Comparison of algorithms under one protocol: ``python -m sb3_attention_ac.compare --help``."""

import sb3_attention_ac.compare._requirements  # noqa: F401
from sb3_attention_ac.compare.comparison import compare
from sb3_attention_ac.compare.errors import CompareError
from sb3_attention_ac.compare.outcome import Comparison
from sb3_attention_ac.compare.settings import Protocol

__all__ = ["CompareError", "Comparison", "Protocol", "compare"]
