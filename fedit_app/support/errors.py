"""The error type whose message is meant for the user, and how it shows values."""


class FedEditError(Exception):
    """An error that the user can correct: the message names the place, the value and the remedy.

    The command line prints it as one line without a traceback; the federation reports it as the
    reason why a node is left out.
    """


def shown(value: object) -> str:
    """A short text of any value for an error message, also of a value that somebody else sent.

    `repr` fails on integers of many thousand digits and on deeply nested lists.
    """
    if isinstance(value, str):
        return repr(value[:80])
    if isinstance(value, bool | float) or value is None:
        return repr(value)
    if type(value) is int and value.bit_length() <= 64:
        return repr(value)
    return f"a {type(value).__name__}"
