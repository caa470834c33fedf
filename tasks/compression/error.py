"""The one error of weight compression."""


class CompressionError(ValueError):
    """A weight format is impossible for this model, or changed nothing."""
