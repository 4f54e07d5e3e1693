"""`python -m w2v_attn COMMAND`, the same as `w2v-attn COMMAND`."""

import sys

from w2v_attn import start_and_end
from w2v_attn.cli.app import main


def run(*command: str) -> None:
    """Run a command, given here and by the arguments of this process, and exit."""
    start_and_end.run_and_exit(lambda: main([*command, *sys.argv[1:]]))


if __name__ == "__main__":
    run()
