"""``python -m qk_taxonomy``."""

from qk_taxonomy.cli import main

main(prog_name="qk-taxonomy")
