"""
After ``mutmut run``: is every mutant that survived named in surviving_mutants.yml, with its reason? Part of ``make mutants``.

A mutant is named by its function and by the line that it makes, because the numbers of mutmut change with the code.
"""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import yaml

NAMED = Path(__file__).with_name("surviving_mutants.yml")
MOST = 0.05
KILLED = ("killed", "timeout", "suspicious", "segfault")


def mutmut(*arguments: str) -> str:
    """What mutmut prints"""
    command = [str(Path(sys.executable).with_name("mutmut")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def results() -> dict[str, str]:
    """Every mutant, and what became of it"""
    return dict(line.strip().split(": ") for line in mutmut("results", "--all", "true").splitlines() if ": " in line)


def named(mutant: str) -> str:
    """``module.function: the line it makes``"""
    function = mutant.rpartition("__mutmut_")[0].replace("xǁ", "").replace("ǁ", ".").replace(".x_", ".")
    changed = [line[1:].strip() for line in mutmut("show", mutant).splitlines() if line[:1] == "+" and line[:3] != "+++"]
    return f"{function.removeprefix('sb3_attention_ac.')}: {' '.join(changed)}"


def main() -> int:
    """The exit code: 1 if too many have survived, or some without a reason"""
    outcomes = results()
    survivors = {named(mutant) for mutant, outcome in outcomes.items() if outcome not in KILLED}
    share = sum(outcome not in KILLED for outcome in outcomes.values()) / len(outcomes)
    print(f"{len(outcomes)} mutants: {dict(Counter(outcomes.values()))}; {share:.1%} survived, {MOST:.0%} are allowed")
    reasons = yaml.safe_load(NAMED.read_text())
    known = {mutant for group in reasons for mutant in group["mutants"]}
    for mutant in sorted(survivors - known):
        print(f"survived, and {NAMED.name} has no reason: {mutant}")
    for mutant in sorted(known - survivors):
        print(f"did not survive, or is no more: {mutant}")
    return int(share > MOST or not survivors <= known)


if __name__ == "__main__":
    sys.exit(main())
