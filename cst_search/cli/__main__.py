"""``python -m cst_search.cli``."""

from cst_search.cli import run

run()
