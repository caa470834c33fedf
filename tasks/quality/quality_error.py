"""What can go wrong while quality is scored."""


class QualityError(RuntimeError):
    """Scoring gives no honest number: the verdict is ERROR, never FAIL. The message says what and where."""
