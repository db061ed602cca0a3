"""Models like to put JSON into a code fence, asked or not."""


def unfenced(text: str) -> str:
    """The text without a fence of ``` or ```json that holds all of it."""
    first, newline, rest = text.strip().partition("\n")
    fenced = first.rstrip().casefold() in ("```", "```json") and newline and rest.endswith("```")
    return rest[:-3] if fenced else text
