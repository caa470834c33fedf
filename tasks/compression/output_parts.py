"""Which outputs of a layer are looked at in pairs: neighbours, in parts, since pairs take memory by the square."""

MOST_OUTPUTS = 640
"""Of a part. Three parts of the demo model's widest layers diverge 2 % more than the whole, or no more (docs/log.md)."""


def output_parts(outputs: int) -> list[int]:
    """Sizes of the parts, as few and as equal as can be."""
    parts = -(-outputs // MOST_OUTPUTS)
    return [outputs * (part + 1) // parts - outputs * part // parts for part in range(parts)]
