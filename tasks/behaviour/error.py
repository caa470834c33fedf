"""What is wrong with behaviour prompts or answers."""


class BehaviourError(ValueError):
    """Prompts that cannot be read or carry no interval, or answers that do not belong together."""
