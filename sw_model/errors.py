"""The one exception that means "the input is wrong, and here is how to mend it"."""

__all__ = ["ExpertileError"]


class ExpertileError(ValueError):
    """Bad input: its message is one line that says what is wrong, where, and the mend.

    Everything else (``TypeError``, ``AssertionError``, ...) is a defect of the program itself. The command
    line prints this one without a traceback and exits with code 2.
    """
