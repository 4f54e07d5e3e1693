"""What stands behind `w2v-attn COMMAND`: a module for each command, whose `run` takes the composed configuration.

A module is imported when its command is to run. With app.py these alone print.
"""
