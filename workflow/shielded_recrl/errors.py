"""The one exception whose message is meant for the user, not for a developer."""


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and how to mend it."""


def first_line(error: Exception) -> str:
    """An exception's reason, short enough to quote in a message of one line."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
