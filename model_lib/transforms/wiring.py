"""Where the norms of a model stand, and which linear maps write what they read and read them.

All surgery works on this description and on trees of numbers, never on modules: a model of one's
own needs nothing but its list of `NormSite`.
"""

from __future__ import annotations

import dataclasses

from model_lib.errors import UserError
from model_lib.normalization import block


@dataclasses.dataclass(frozen=True)
class Map:
  """A linear map y = multiplier * (x W) + b, or a table of vectors.

  Attributes:
    path: of its parameters: `kernel` [..., n_in, n_out] (a convolution's is [kh, kw, n_in, n_out])
      or `table`, `embedding` [rows, n_out], and maybe `bias` [n_out].
    multiplier: the factor of the forward pass.
    padded: whether it pads its input with zeros, as a convolution larger than 1x1 does.
    shared_with: path of what uses the same numbers (a tied embedding), or None.
  """

  path: str
  multiplier: float = 1.0
  padded: bool = False
  shared_with: str | None = None


@dataclasses.dataclass(frozen=True)
class NormSite:
  """A norm and its surroundings.

  Attributes:
    path: of the norm's parameters and state.
    reads: what its input is, for messages: 'the residual stream'.
    feeds: what its output goes into, for messages.
    writers: the maps whose outputs add up to the input, each times a number at most; whatever else
      reads that sum is a norm, or the sum itself carried on. () where it is no such sum.
    consumers: the maps that read the output, through nothing but means over positions. () where
      anything else reads it too.
    alone: whether the one writer is read by this norm and nothing else.
  """

  path: str
  reads: str
  feeds: str
  writers: tuple[Map, ...] = ()
  consumers: tuple[Map, ...] = ()
  alone: bool = False


def wiring(model, params) -> tuple[NormSite, ...]:
  """The norm sites of an mlp, vit or gpt of this project, in the order of the forward pass.

  Args:
    model: the module, with the placement pre, post or none in all places.
    params: its parameters; they say which layers are gated.

  Raises:
    UserError: another model, another placement, overrides, norms of weights or of the stem, or
      branches with factors of their own.
  """
  kind = type(model).__name__
  makers = {'MLP': _mlp, 'ViT': _transformer, 'GPT': _transformer}
  if kind not in makers:
    raise UserError(f'surgery knows the wiring of mlp, vit and gpt, not of {kind}; '
                    'describe it as a list of NormSite; that of gpt2 is `gpt2_wiring`')
  if getattr(model, 'overrides', ()):
    raise UserError(f'surgery: the model has overrides ({model.overrides[0]!r}); '
                    'describe its wiring as a list of NormSite')
  if model.parametrization != 'sp':
    # A trained or per-branch factor between a map and the stream would have to be in the Map.
    raise UserError(f'surgery: parametrization {model.parametrization!r} puts factors between the '
                    'maps; only sp is known, describe the wiring as a list of NormSite')
  for name in ('weight', 'stem_norm'):
    if getattr(model, name, 'none') != 'none':
      raise UserError(f'surgery: the model has {name}={getattr(model, name)!r}, which is not known '
                      'here; describe the wiring as a list of NormSite')
  placed = block(model.norm, model.parametrization)
  if placed.spec == 'none':
    return ()
  # Parts one by one, such as qk=rms, have a longer spec than the placement of one norm.
  if placed.placement not in ('pre', 'post') or (
      placed.spec != f'{placed.placement}:{placed.norm.spec}'):
    raise UserError(f'surgery knows the placements pre and post, not {model.norm!r}; '
                    'describe the wiring as a list of NormSite')
  return makers[kind](model, params, placed.placement)


def gpt2_wiring(depth: int, tied: bool, final: bool = True) -> tuple[NormSite, ...]:
  """The norm sites of a `models.gpt2`, for its tree with the layers apart (`edits.unstack`).

  Args:
    depth: layers.
    tied: whether the unembedding is the transposed `wte`; where it is, ln_f cannot be folded.
    final: whether ln_f is one of them.
  """
  stream = [Map('wte', shared_with='lm_head' if tied else None), Map('wpe')]
  found = []
  for i in range(depth):
    for norm, branch, reader in (('ln_1', 'attn', 'c_attn'), ('ln_2', 'mlp', 'c_fc')):
      found.append(NormSite(f'h/{i}/{norm}', 'the residual stream', 'linear maps', tuple(stream),
                            (Map(f'h/{i}/{branch}/{reader}'),)))
      stream.append(Map(f'h/{i}/{branch}/c_proj'))
  head = Map('lm_head', shared_with='wte' if tied else None)
  last = NormSite('ln_f', 'the residual stream', 'linear maps', tuple(stream), (head,))
  return (*found, last) if final else tuple(found)


def _mlp(model, params, placement: str) -> tuple[NormSite, ...]:
  depth, sites = len(model.widths), []

  def maps(i):
    names = ('head',) if i == depth else (f'gate_{i}', f'hidden_{i}')
    return tuple(Map(name) for name in names if name in params)

  for i in range(depth):
    if placement == 'post':
      sites.append(NormSite(f'norm_{i}', 'an activation', 'linear maps', consumers=maps(i + 1)))
    else:
      sites += [NormSite(f'norm_{m.path}', 'a linear map', 'an activation', writers=(m,),
                         alone=True) for m in maps(i)]
  return tuple(sites)


def _transformer(model, params, placement: str) -> tuple[NormSite, ...]:
  stream = [Map(name) for name in ('embedding', 'stem', 'position') if name in params]
  head, sites = (Map('head'),), []
  branches = [(i, part) for i in range(model.depth) for part in ('attention', 'feed_forward')]
  for n, (i, part) in enumerate(branches):
    names = ('qkv',) if part == 'attention' else ('gate', 'in')
    inside = params['blocks'][f'{part}_{i}']
    reads = tuple(Map(f'blocks/{part}_{i}/{name}') for name in names if name in inside)
    path = f'blocks/norm_{part}_{i}'
    if placement == 'pre':
      sites.append(NormSite(path, 'the residual stream', 'linear maps', tuple(stream), reads))
    else:
      last = n == len(branches) - 1
      sites.append(NormSite(path, 'the output of another norm, plus a branch',
                            'linear maps' if last else 'the residual stream as well',
                            consumers=head if last else ()))
    stream.append(Map(f'blocks/{part}_{i}/out'))
  if placement == 'pre':
    sites.append(NormSite('blocks/norm_final', 'the residual stream', 'linear maps',
                          tuple(stream), head))
  return tuple(sites)
