"""Executes the notebooks: `python -m utils.runner`. No lesson needs to read this."""
