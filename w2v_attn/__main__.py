"""`python -m w2v_attn COMMAND` is `w2v-attn COMMAND`."""

import sys

from w2v_attn import start_and_end
from w2v_attn.cli.app import main


def run(*command: str) -> None:
    """A command as a process of its own: what is given here, then the arguments of the process."""
    start_and_end.run(lambda: main([*command, *sys.argv[1:]]))


if __name__ == "__main__":
    run()
