"""The one error of the data package."""


class DataError(ValueError):
    """Pictures or labels cannot be used as they are; the message names the file or value and the fix."""
