"""The endless T-maze: corridors in a row, each with a cue of its own, so that memory has to be rewritten."""

from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from sb3_attention_ac.envs.base import Maze, draw_t
from sb3_attention_ac.validation import check_integers

FORWARD, LEFT, RIGHT = range(3)


class EndlessTMaze(Maze):
    """
    The Endless T-Maze of Shchendrigin et al. 2026, "Memory Retention Is Not Enough to Master Memory Tasks in Reinforcement
    Learning" (https://arxiv.org/abs/2601.15086): ``n_corridors`` T-mazes in a row. The first cell of each shows a cue, left
    or right, that replaces all cues before it. At the end of the corridor the agent must turn that way: the correct turn leads
    to the first cell of the next corridor, a wrong one ends the episode.

    - Observation: float32 [3]. (x / ``corridor_length``, cue left, cue right), with x the cell in the present corridor,
      from 0 to its length. The cue is 1 in the first cell only.
    - Action: 0 forward, 1 left, 2 right.
    - Reward: ``goal_reward`` for the correct turn; ``wrong_reward`` for any other action at a junction; ``idle_reward`` for a
      turn within a corridor, which moves nothing; 0 for a step forward.
    - End: terminated by failing a junction or passing the last; truncated after ``6 * (corridor_length + 1) * n_corridors``
      steps. ``info["is_success"]`` then tells if all corridors were passed, ``info["corridors_passed"]`` how many.
    - Return: ``n_corridors`` for remembering. An agent that forgets passes each corridor with probability 1/2.

    With ``lengths="uniform"`` each corridor has a length of its own, drawn from 1 to ``corridor_length``. The observation does
    not show where it ends: the agent has to try its turn, at a small price, and go forward if nothing came of it. The paper's
    text does not say if its position is divided by the longest or by the present corridor's length; the authors' code
    takes the longest, which is the default here. ``relative_position=True`` takes the present one: then 1 is the junction.

    The paper gives -1 for a wrong turn and a small penalty for delay; in the code that its authors published the wrong turn
    costs the same small penalty (-0.01): ``wrong_reward=-0.01`` is that.

    :param n_corridors: Number of corridors, at least 1; with 1 it is a T-maze
    :param corridor_length: Length of a corridor, or of the longest one, at least 1
    :param lengths: "fixed": all corridors have the length ``corridor_length``; "uniform": each is drawn from 1 to that
    :param goal_reward: Reward for a correct turn
    :param wrong_reward: Reward for a wrong turn, or for going forward at a junction
    :param idle_reward: Reward for a turn where there is none
    :param relative_position: Divide the position by the present corridor's length instead of the longest one's
    :param render_mode: None or "rgb_array"
    :raises ValueError: If a parameter is out of its range
    """

    def __init__(
        self,
        n_corridors: int = 5,
        corridor_length: int = 10,
        lengths: Literal["fixed", "uniform"] = "fixed",
        goal_reward: float = 1.0,
        wrong_reward: float = -1.0,
        idle_reward: float = -0.01,
        relative_position: bool = False,
        render_mode: str | None = None,
    ):
        super().__init__(render_mode)
        check_integers({"n_corridors": (n_corridors, 1), "corridor_length": (corridor_length, 1)})
        if lengths not in ("fixed", "uniform"):
            raise ValueError(f"lengths={lengths!r} was given, but it must be 'fixed' or 'uniform'.")
        self.n_corridors, self.corridor_length, self.lengths = n_corridors, corridor_length, lengths
        self.goal_reward, self.wrong_reward, self.idle_reward = goal_reward, wrong_reward, idle_reward
        self.relative_position = relative_position
        self.max_steps = 6 * (corridor_length + 1) * n_corridors
        self.observation_space = spaces.Box(0.0, 1.0, (3,), dtype=np.float32)
        self.action_space = spaces.Discrete(3)
        self._x = self._passed = 0
        self._length, self._cue = corridor_length, LEFT

    def _begin(self) -> None:
        self._passed = 0
        self._enter_corridor()

    def _enter_corridor(self) -> None:
        self._x = 0
        self._cue = LEFT if self.np_random.integers(2) else RIGHT
        self._length = self.corridor_length
        if self.lengths == "uniform":
            self._length = int(self.np_random.integers(1, self.corridor_length + 1))

    def _observation(self) -> np.ndarray:
        position = self._x / (self._length if self.relative_position else self.corridor_length)
        at_cue = self._x == 0
        return np.array([position, at_cue and self._cue == LEFT, at_cue and self._cue == RIGHT], dtype=np.float32)

    def _move(self, action: int) -> tuple[float, bool, dict[str, Any]]:
        terminated = False
        if self._x < self._length:
            self._x += action == FORWARD
            reward = 0.0 if action == FORWARD else self.idle_reward
        elif action == self._cue:
            reward = self.goal_reward
            self._passed += 1
            terminated = self._passed == self.n_corridors
            if not terminated:
                self._enter_corridor()
        else:
            reward, terminated = self.wrong_reward, True
        return reward, terminated, {"is_success": self._passed == self.n_corridors, "corridors_passed": self._passed}

    def _picture(self) -> np.ndarray:
        goal = 1 if self._cue == LEFT else 3
        return draw_t(self.corridor_length + 3, self._length + 1, goal, (2, self._x + 1))
