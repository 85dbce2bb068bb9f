"""The commands, a module for each: `add` makes its parser, whose `run` does the work.

The modules are light; what a command needs is imported when it runs.
"""
