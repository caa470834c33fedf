"""What is wrong with a text source."""


class TextError(ValueError):
    """The configured text cannot be used; the message says where and what to do. Bad input: exit code 2."""
