"""The one error type that a user of FedEdit is meant to read, and how it shows values."""


class FedEditError(Exception):
    """Something the user can mend: the message names the place, what was found and the remedy.

    The command line prints it as one line without a traceback; the federation reports it as the
    reason why a node was left out.
    """


def shown(value: object) -> str:
    """A short text of any value for an error message, safe for what others sent as well.

    `repr` fails on integers of many thousand digits and on deeply nested lists.
    """
    if isinstance(value, str):
        return repr(value[:80])
    if isinstance(value, bool | float) or value is None:
        return repr(value)
    if type(value) is int and value.bit_length() <= 64:
        return repr(value)
    return f"a {type(value).__name__}"
