"""What training raises."""


class TrainingError(RuntimeError):
    """Training cannot start, or broke (a loss that is not a number): ERROR, and nothing is kept."""
