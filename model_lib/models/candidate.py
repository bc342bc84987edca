"""A candidate: the text of the function that a model's swept activation computes."""

from __future__ import annotations

from model_lib.errors import UserError
from model_lib.models import overrides
from model_lib.models import swept
from model_lib.models.site import ACTIVATION

CANDIDATE = 'candidate'  # the name under which `Member.hp` holds the text


def encode(model, text: str) -> swept.Leaves:
  """The hp leaves of a candidate for a model with one swept activation, at any of its places.

  Raises:
    UserError: the text is no candidate, or the model takes none, or has two that would read it.
  """
  specs = {site.spec for site in overrides.resolved(model) if site.kind == ACTIVATION}
  found = [entry for entry in map(swept.find, sorted(specs)) if entry and entry.default()]
  if len(found) != 1:
    have = ', '.join(entry.name for entry in found) or 'none'
    raise UserError('a candidate needs a model with exactly one swept activation such as '
                    f"activation='table'; this model has: {have}")
  return found[0].encode(text)
