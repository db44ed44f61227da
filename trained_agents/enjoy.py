"""RL Zoo's script, under the name by which `python -m rl_zoo3.benchmark` calls it."""

from rl_zoo3.enjoy import enjoy

enjoy()
