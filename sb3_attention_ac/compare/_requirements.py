"""Imported before the rest of the package: says in words which extra is missing."""

from importlib.util import find_spec

NEEDED = ("filelock", "jinja2", "joblib", "matplotlib", "pandas", "rliable", "seaborn")


def check() -> None:
    """:raises ImportError: If a package that the comparison needs is not installed"""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"sb3_attention_ac.compare needs {', '.join(missing)}, which a plain install does not include: "
            "pip install '.[compare]' in the checkout"
        )


check()
