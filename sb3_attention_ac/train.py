"""
``python -m sb3_attention_ac.train``: the same as ``python -m rl_zoo3.train``, without need for the start-up hook.
"""

from rl_zoo3.train import train

from sb3_attention_ac.zoo import register


def main() -> None:
    """Register the algorithm and run the training script of RL Zoo."""
    register()
    train()


if __name__ == "__main__":
    main()
