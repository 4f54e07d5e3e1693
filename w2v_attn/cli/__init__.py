"""The command line: `app.py` composes the configuration and passes it to the `run` function of a command's module.

The module of a command is imported when the command runs. Only this package prints.
"""
