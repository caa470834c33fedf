"""What can be wrong with a model source."""


class ModelSourceError(Exception):
    """The source model cannot be had as configured: one line with what, where and the way out. Bad input."""
