"""The one error class that speaks to users."""


class UserError(ValueError):
    """Something the user gave is wrong: the message names the bad value, where it came from and what would do.

    `launch.py` prints the message alone and exits with 2; anything else is a defect and keeps its traceback.
    """
