"""The mutants that may survive are those of functions that there are."""

import pkgutil

import pytest
import yaml
from mutants import NAMED

REASONS = yaml.safe_load(NAMED.read_text())
MUTANTS = [mutant for group in REASONS for mutant in group["mutants"]]


@pytest.mark.parametrize("function", sorted({mutant.partition(": ")[0] for mutant in MUTANTS}))
def test_a_survivor_is_of_a_function_that_there_is(function):
    assert callable(pkgutil.resolve_name(f"sb3_attention_ac.{function}"))


def test_every_survivor_has_one_reason():
    assert len(set(MUTANTS)) == len(MUTANTS) and all(group["reason"] for group in REASONS)
