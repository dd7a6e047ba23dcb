"""The one error type that a user of FedEdit is meant to read."""


class FedEditError(Exception):
    """Something the user can mend: the message names the place, what was found and the remedy.

    The command line prints it as one line without a traceback; the federation reports it as the
    reason why a node was left out.
    """
