"""A candidate: the text of the function that a model's swept activation computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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


def encode_ahead(model, hps: Iterable[Mapping]) -> None:
  """Encodes the candidates of `Member.hp` mappings; `encode` then finds what the engine keeps.

  Raises:
    UserError: as `encode`.
  """
  texts = dict.fromkeys(
      value for hp in hps for name, value in hp.items()
      if isinstance(value, str) and name.rsplit('/', 1)[-1] == CANDIDATE)
  for text in list(texts)[:swept.KEPT]:
    encode(model, text)
