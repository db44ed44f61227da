"""sb3-contrib's environments with action masks, registered: in each step the action that was not forbidden has to be named."""

import gymnasium as gym

PATH = "sb3_contrib.common.envs.invalid_actions_env"

gym.register("InvalidActionsDiscrete-v0", f"{PATH}:InvalidActionEnvDiscrete", kwargs={"dim": 20, "n_invalid_actions": 10})
gym.register(
    "InvalidActionsMultiDiscrete-v0",
    f"{PATH}:InvalidActionEnvMultiDiscrete",
    kwargs={"dims": [4, 4, 4], "n_invalid_actions": 4},
)
gym.register("InvalidActionsMultiBinary-v0", f"{PATH}:InvalidActionEnvMultiBinary", kwargs={"dims": 8, "n_invalid_actions": 4})
