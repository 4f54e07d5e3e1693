"""The names of the commands."""

COMMANDS = ("extract", "convert", "finetune", "transcribe", "evaluate", "load", "verify", "benchmark")
