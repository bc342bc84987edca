"""Where a normalization stands: in which spots of a residual branch, and at the stack's ends.

A branch f joins the stream x in one line with up to four norms,

  sum( x + output( f( input(x) ) ) )       `inner` stands in f, before its last kernel,

and a placement says which of them are there:

  none        x + f(x)
  pre         x + f(N(x)), and one N after the last block
  post        N(x + f(x))
  pre+post    N(x + f(N(x)))
  sandwich    x + N(f(N(x)))
  peri        as sandwich, and one N after the last block
  olmo2       x + N(f(x)), and one N after the last block
  subln       as pre, with `inner`
  mix         post in the first share (0.25) of the blocks, pre in the others
  parallel    x + A(N(x)) + M(N(x)), all branches of a block from the same x, and a final N
  normformer  attention as sandwich, mlp as subln; a final N
  resi_dual   N(x + f(x)) for x, d + f(x) for a second stream d; at the end x + N(d)
  ngpt        unit(x + |alpha| (unit(f(x)) - x)), no other norm

The factors of a branch are the parametrization's (`parametrization.row`). In a network without
residual branches the sublayer is the activation: `pre` is f(N(Wx)), `post` is N(f(Wx)).

`block` reads PLACEMENT:NORM, or the parts one by one:

  attention=pre+post:layer, mlp=pre:layer, qk=rms, embed=layer, final=none

`qk` normalizes queries and keys over the size of a head; qk=l2 divides them by their length and
puts one trained factor in place of 1/sqrt(head_dim). `embed` normalizes what enters the stack.
"""

from __future__ import annotations

import dataclasses
import re

from model_lib import spec as spec_lib
from model_lib.errors import UserError
from model_lib.normalization.registry import Norm, get_norm
from model_lib.parametrization import get_parametrization

KINDS = ('attention', 'mlp')
STEMS = ('pre', 'post', 'dual')
QK_FORMS = ('l2', 'sphere')
_KEY = re.compile(r'\s*([a-z_]+)\s*=\s*(.*)', re.DOTALL)
_KEYS = (*KINDS, 'qk', 'embed', 'final')


@dataclasses.dataclass(frozen=True)
class Placement:
  """A row of the table of placements.

  Attributes:
    attention, mlp: the spots with a norm, among input, output, inner, sum and step.
    final: whether the stack ends in a norm, since nothing else bounds the stream.
    paper: the source.
    confirmed: False where the equation is known from memory only.
    same_block: another placement whose blocks are the same and whose ends differ.
    belongs_to: the row of the parametrization table without which it makes no sense.
  """

  attention: tuple[str, ...]
  mlp: tuple[str, ...]
  final: bool
  paper: str
  confirmed: bool = True
  same_block: str = ''
  belongs_to: str = ''

  def spots(self, kind: str) -> tuple[str, ...]:
    """The spots of a branch of the kind 'attention' or 'mlp'."""
    return self.attention if kind == 'attention' else self.mlp


def _same(*spots: str, final: bool, paper: str, **more) -> Placement:
  return Placement(spots, spots, final, paper, **more)


PLACEMENTS = {
  'none': _same(final=False, paper='none'),
  'pre': _same('input', final=True, paper='Xiong et al. 2020, arXiv:2002.04745'),
  'post': _same('sum', final=False, paper='Vaswani et al. 2017, arXiv:1706.03762'),
  'pre+post': _same('input', 'sum', final=False,
                    paper='Kumar, Dehghani, Houlsby 2023 (Dual PatchNorm), arXiv:2302.01327'),
  'sandwich': _same('input', 'output', final=False, paper='Ding et al. 2021, arXiv:2105.13290',
                    confirmed=False, same_block='peri'),
  'peri': _same('input', 'output', final=True, paper='Kim et al. 2025, arXiv:2502.02732',
                same_block='sandwich'),
  'olmo2': _same('output', final=True, paper='OLMo 2', confirmed=False),
  'subln': _same('input', 'inner', final=True,
                 paper='Wang et al. 2022 (Magneto), arXiv:2210.06423'),
  'mix': _same(final=True, paper='Li et al. 2024 (Mix-LN), arXiv:2412.13795'),
  'parallel': _same('input', final=True, paper='arXiv:2212.06011; GPT-J'),
  'normformer': Placement(('input', 'output'), ('input', 'inner'), True,
                          'Shleifer et al. 2021, arXiv:2110.09456', confirmed=False,
                          belongs_to='normformer'),
  'resi_dual': _same('sum', final=True, paper='Xie et al. 2023, arXiv:2304.14802',
                     confirmed=False),
  'ngpt': _same('step', final=False, paper='Loshchilov et al. 2024, arXiv:2410.01131',
                belongs_to='ngpt'),
}


@dataclasses.dataclass(frozen=True)
class Placed:
  """A norm and the placement of one branch.

  Attributes:
    placement: a key of PLACEMENTS.
    norm: the norm that is placed.
    share: for `mix`, the share of the blocks that are post.
  """

  placement: str
  norm: Norm
  share: float = 0.25

  @property
  def spec(self) -> str:
    """The canonical string."""
    if self.placement in ('none', 'ngpt'):
      return self.placement
    settings = f'({self.share!r})' if self.placement == 'mix' and self.share != 0.25 else ''
    return f'{self.placement}{settings}:{self.norm.spec}'

  def spots(self, kind: str) -> tuple[str, ...]:
    """The spots of a branch of the kind 'attention' or 'mlp'; of `mix` see `at`."""
    return PLACEMENTS[self.placement].spots(kind)

  def at(self, block: int, blocks: int) -> 'Placed':
    """The placement in block `block`, from 1, of `blocks`: that of `mix` changes on the way."""
    if self.placement != 'mix':
      return self
    return dataclasses.replace(self, placement='post' if block <= int(self.share * blocks)
                               else 'pre', share=0.25)


@dataclasses.dataclass(frozen=True)
class BlockSpec:
  """The norms of a stack of residual blocks.

  Attributes:
    attention, mlp: of the two kinds of branches; `mlp` is every one without attention.
    qk: the norm of queries and keys: 'none', a norm's spec, 'l2' or 'sphere'.
    embed: the norm of what enters the stack.
    final: the norm of what leaves it.
    residual: the row of the parametrization table.
  """

  attention: Placed
  mlp: Placed
  qk: str
  embed: Norm
  final: Norm
  residual: str

  @property
  def placement(self) -> str:
    """The placement of a branch without attention."""
    return self.mlp.placement

  @property
  def norm(self) -> Norm:
    """The norm of a branch without attention."""
    return self.mlp.norm

  @property
  def spec(self) -> str:
    """The canonical string; the parts one by one where they are not those of one placement."""
    defaults = _defaults(self.mlp)
    parts = {'attention': self.attention.spec, 'mlp': self.mlp.spec, 'qk': self.qk,
             'embed': self.embed.spec, 'final': self.final.spec}
    if self.attention == self.mlp and all(parts[key] == defaults[key] for key in defaults):
      return self.mlp.spec
    return ', '.join(f'{key}={value}' for key, value in parts.items()
                     if key in KINDS or value != defaults[key])

  @property
  def final_norm(self) -> bool:
    """Whether the stack ends in a norm."""
    return self.final.name != 'none'

  def kind(self, kind: str) -> Placed:
    """`attention` or `mlp` by name."""
    return self.attention if kind == 'attention' else self.mlp

  def norms(self) -> tuple[Norm, ...]:
    """Every norm that stands somewhere, qk left out."""
    found = [placed.norm for placed in (self.attention, self.mlp) if placed.placement != 'none']
    return tuple(norm for norm in (*found, self.embed, self.final) if norm.name != 'none')


def block(norm: str = 'pre:layer', residual: str = 'sp') -> BlockSpec:
  """Parses a placement such as `none`, `pre:layer` or `post:rms(eps=1e-6)`, or its parts.

  A norm without a placement, such as `batch`, stands before (`pre`).

  Raises:
    UserError: unknown placement, norm, part or parametrization (the message names the nearest),
      or a parametrization that is not derived for the placement or the norm (it says why).
  """
  row = get_parametrization(residual)
  parts = _parts(norm)
  one = parts.pop('', None)
  placed = {kind: placed_norm(parts.pop(kind, one), norm) for kind in KINDS}
  for name in ('parallel', 'resi_dual', 'ngpt', 'mix'):
    if len({name in (p.placement,) for p in placed.values()}) > 1:
      raise UserError(f'{norm!r}: {name} is a placement of the whole block, so attention and mlp '
                      'must both have it')
  mlp = placed['mlp']
  given = {**_defaults(mlp), **parts}
  qk = given['qk'] if given['qk'] in QK_FORMS else get_norm(given['qk']).spec
  found = BlockSpec(placed['attention'], mlp, qk, get_norm(given['embed']),
                    get_norm(given['final']), row.name)
  _check_residual(found, row)
  return found


def placed_norm(text: str, whole: str | None = None) -> Placed:
  """PLACEMENT:NORM, or a norm alone, which stands before; UserError as `block`."""
  whole = text if whole is None else whole
  text = str(text).strip()
  if text in ('none', 'ngpt'):
    return Placed(text, get_norm('none'))
  name, colon, norm_spec = text.partition(':')
  # A colon inside a norm's settings is no placement's.
  if not colon or _opens(name):
    return _alone('pre', text)
  name, share = name.strip(), 0.25
  if name.startswith('mix'):
    name, share = _mix(whole, name)
  if name not in PLACEMENTS or name in ('none', 'ngpt'):
    raise UserError(f'{whole!r}: {name!r} is no placement that takes a norm'
                    f'{spec_lib.nearest(name, PLACEMENTS)}; write none, ngpt or PLACEMENT:NORM '
                    f'with one of {", ".join(sorted(set(PLACEMENTS) - {"none", "ngpt"}))}')
  placed = _alone(name, norm_spec)
  return dataclasses.replace(placed, share=share) if placed.placement == 'mix' else placed


def stem_norms(text: str) -> tuple[Norm, Norm]:
  """The norms before and after the patch embedding: none, pre:NORM, post:NORM or dual:NORM.

  Raises:
    UserError: another text, or an unknown norm; the message names the nearest.
  """
  none, (name, colon, norm_spec) = get_norm('none'), str(text).partition(':')
  name = name.strip()
  if name == 'none' and not colon:
    return none, none
  if name not in STEMS or not colon:
    raise UserError(f'stem_norm {text!r}: {name!r} is no place for a norm of the stem'
                    f'{spec_lib.nearest(name, STEMS)}; write none, pre:NORM, post:NORM or '
                    'dual:NORM')
  norm = get_norm(norm_spec)
  return (norm if name != 'post' else none), (norm if name != 'pre' else none)


def _alone(placement: str, norm_spec: str) -> Placed:
  norm = get_norm(norm_spec)
  return Placed('none' if norm.name == 'none' else placement, norm)


def _opens(text: str) -> bool:
  return text.count('(') > text.count(')')


def _mix(whole: str, name: str) -> tuple[str, float]:
  """The name and the share of `mix`, `mix(0.5)` or `mix(share=0.5)`."""
  call = spec_lib.parse(name)
  values = [*call.args, *(value for key, value in call.kwargs if key == 'share')]
  if call.name != 'mix':
    return call.name, 0.25
  if len(values) != len(call.args) + len(call.kwargs) or len(values) > 1:
    raise UserError(f'{whole!r}: mix takes one setting, the share of post blocks, as in mix(0.25)')
  share = values[0] if values else 0.25
  if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
    raise UserError(f'{whole!r}: the share of mix must be a number in [0, 1], not {share!r}')
  return 'mix', float(share)


def _parts(norm: str) -> dict[str, str]:
  """The text by part; one placement alone has the key ''."""
  text = str(norm)
  if not _KEY.fullmatch(text) or _opens(text.partition('=')[0]):
    return {'': text}
  parts, depth, start = {}, 0, 0
  for at, character in enumerate(text + ','):
    depth += (character == '(') - (character == ')')
    if character != ',' or depth:
      continue
    match = _KEY.fullmatch(text[start:at])
    start = at + 1
    if match is None or match[1] not in _KEYS:
      key = match[1] if match else text[start:at].strip()
      raise UserError(f'{norm!r}: {key!r} is no part of a stack'
                      f'{spec_lib.nearest(key, _KEYS)}; the parts are {", ".join(_KEYS)}')
    if match[1] in parts:
      raise UserError(f'{norm!r}: {match[1]!r} is given twice')
    parts[match[1]] = match[2].strip()
  for kind in KINDS:
    if kind not in parts:
      raise UserError(f'{norm!r}: say {kind}= too, e.g. {kind}=pre:layer')
  return parts


def _defaults(mlp: Placed) -> dict[str, str]:
  """The parts that a placement brings with it."""
  final = PLACEMENTS[mlp.placement].final
  return {'qk': 'sphere' if mlp.placement == 'ngpt' else 'none', 'embed': 'none',
          'final': mlp.norm.spec if final else 'none'}


def _check_residual(found: BlockSpec, row) -> None:
  """UserError where the row of the parametrization does not go with the placements."""
  if row.placements == ('none',) and found.norms():
    raise UserError(f'residual={row.name!r} does not go with {found.spec!r}: {row.reason}; '
                    'the placement must be none, with no norm at the ends')
  for placed in (found.attention, found.mlp):
    belongs = PLACEMENTS[placed.placement].belongs_to
    if belongs and row.name.partition('(')[0] != belongs:
      raise UserError(f'placement {placed.placement!r} needs residual={belongs!r}, not '
                      f'{row.name!r}: {get_parametrization(belongs).reason}')
    wrong = []
    if row.placements is not None and placed.placement not in row.placements:
      wrong.append(f'the placement must be {" or ".join(row.placements)}')
    if row.norms is not None and placed.norm.name not in row.norms:
      wrong.append(f'the norm must be {" or ".join(row.norms)}')
    if wrong:
      raise UserError(f'residual={row.name!r} does not go with {placed.spec!r}: {row.reason}; '
                      + ' and '.join(wrong))
