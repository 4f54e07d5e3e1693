"""The command line: `app.py` composes the configuration, and each command is a module whose `run` takes it.

A command's module is imported when the command runs. Only this package prints.
"""
