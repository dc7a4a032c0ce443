"""The one exception whose message is meant for the user, not for a developer."""


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and how to mend it."""
