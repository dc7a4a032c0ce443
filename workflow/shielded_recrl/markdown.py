"""Text in Markdown pages."""


def in_cell(text: str) -> str:
    """Text that stays inside its table cell and is no markup, on one line.

    >>> in_cell("a | b\\n <c>")
    'a &#124; b &lt;c>'
    """
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return plain.replace("|", "&#124;").replace("`", "&#96;")
