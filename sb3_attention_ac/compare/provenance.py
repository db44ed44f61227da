"""Where and with what a result was made."""

import os
import platform
import subprocess
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch as th

PACKAGES = (
    "sb3_attention_ac",
    "stable_baselines3",
    "sb3_contrib",
    "rl_zoo3",
    "gymnasium",
    "torch",
    "numpy",
    "popgym",
    "minigrid",
    "mujoco",
    "box2d",
    "ale-py",
)


def provenance(command: str) -> dict[str, Any]:
    """
    :param command: Command line of the comparison
    :return: Versions, hardware, revision of this package, command and time (UTC)
    """
    return {
        "command": command,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": {
            "machine": platform.node(),
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpu": th.cuda.get_device_name() if th.cuda.is_available() else None,
        },
        "git_revision": git_revision(),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    # Only Linux hides the name of the processor from the platform module
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def git_revision() -> str | None:
    """
    Asked before the first run of a process and then kept: the code that runs is that of then.

    :return: Revision of the checkout this package is in, with "+changes" where it has some, None if it is in none
    """
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an environment inside some other repository is not a checkout
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
