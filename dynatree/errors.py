"""The one error that is the user's to mend; entry points print it as one line and exit with status 2."""


class UserError(ValueError):
    """Bad input: the message names the value received and what would have been accepted."""
