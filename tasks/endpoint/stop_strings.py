"""Stop strings: the text ends before the first of them, and no part of one goes out before it is known."""

from collections.abc import Sequence


class StopStrings:
    """Watches the text of one completion.

    Attributes:
        matched: a stop string was found; nothing follows.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Take the strings, each not empty."""
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def feed(self, text: str) -> str:
        """The text that no stop string can begin in any more, up to one that was found."""
        self._held += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:  # the one that is complete first, so that it does not matter how the text was cut
            self.matched = True
            sure, self._held = self._held[: min(found)[1]], ""
            return sure
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        at = len(self._held) - keep
        sure, self._held = self._held[:at], self._held[at:]
        return sure

    def flush(self) -> str:
        """What was held back when the text ended by itself."""
        text, self._held = self._held, ""
        return text

    def _overlap(self, stop: str) -> int:
        """Characters at the end of the held text that begin `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
