"""The error that means: a data file, archive or name cannot be used as given."""


class DataError(ValueError):
  """Bad data or a bad request for data.

  The message is one line: the file, the place in it, what is wrong, what to do.
  `data` stands on its own, so this is not `model_lib.errors.UserError`; the
  programs catch both and exit with code 2.
  """
