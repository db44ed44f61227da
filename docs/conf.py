"""How the site is built: sphinx-build -W docs docs/_build/html."""

import os
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))  # the API reference is that of this checkout
# Read the Docs knows where the repository is
REPOSITORY = os.environ.get("READTHEDOCS_GIT_CLONE_URL", "").removesuffix(".git")

project = "sb3_attention_ac"
author = "the sb3_attention_ac developers"
copyright = f"2026, {author}"
release = version = (ROOT / "sb3_attention_ac" / "version.txt").read_text().strip()

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton", "sphinx_design"]
exclude_patterns = ["_build", "results/suites/*"]

# The pages are Markdown that GitHub shows as well: the same links, the same anchors
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist"]

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"

# Needs a network, without which it warns: only where the site is published
if "READTHEDOCS" in os.environ:
    extensions.append("sphinx.ext.intersphinx")
intersphinx_mapping: dict[str, tuple[str, None]] = {
    "python": ("https://docs.python.org/3", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
    "stable_baselines3": ("https://stable-baselines3.readthedocs.io/en/master", None),
    "gymnasium": ("https://gymnasium.farama.org", None),
}

html_theme = "furo"
html_title = f"sb3_attention_ac {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]


def link_to_repository(app: Sphinx, docname: str, content: list[str]) -> None:
    """Links out of docs/ lead to the file in the repository, if its address is known. Else their text is left alone."""

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = ((DOCS / docname).parent / target).resolve()
        if path.is_relative_to(DOCS):
            return match[0]
        return f"[{text}]({REPOSITORY}/blob/main/{path.relative_to(ROOT)})" if REPOSITORY else text

    content[0] = re.sub(r"\[([^\]]*)\]\((\.\./[^)\s]*)\)", link, content[0])


def without_links_to_included(app: Sphinx, docname: str, content: list[str]) -> None:
    """What GitHub needs, which shows no included tables, the site does not."""
    content[0] = re.sub(r"^\[Tables and picture\]\(suites/\w+\.md\)\n", "", content[0], flags=re.MULTILINE)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", without_links_to_included)
    app.connect("source-read", link_to_repository)
