"""The error that means: the user asked for something that cannot be had."""


class UserError(ValueError):
  """A mistake of the user, not of the program.

  The message is one line: what is wrong, where, and what to do about it. The
  study runner prints that line and exits with code 2; a traceback is never shown.
  """
