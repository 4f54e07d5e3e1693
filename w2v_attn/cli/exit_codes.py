"""What a command tells the shell as it ends; see `start_and_end` for what nobody reads."""

DONE, SOME_FAILED, WRONG_REQUEST, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
