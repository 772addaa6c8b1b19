"""The one exception that means: the user can fix this."""


class UserError(Exception):
    """Wrong use or bad input. One sentence that names the file, the value and the fix; the command exits with status 2."""
