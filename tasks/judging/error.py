"""What can go wrong with a judge.

ValueError
  LabelError      the human labels cannot be read (user input)
  DecisionError   a spot-check decision breaks its rules (user input)
RuntimeError
  JudgeError      the judge cannot be asked: it is reported, and has no vote
"""


class JudgeError(RuntimeError):
    """The judge cannot be asked, or its replies are no replies."""


class LabelError(ValueError):
    """A file of human labels that is missing or malformed: file, line, field and the rule."""


class DecisionError(ValueError):
    """A spot-check decision that is not valid as it stands."""
