"""Weir: a metering gateway in front of OpenAI-compatible endpoints. Importing this package imports nothing else."""

__version__ = "0.1.0"
