"""The rows that differ from the standard one by their residual branches: factors and inits.

L is the number of blocks, l the number of a block from 1; a transformer's block has two
branches. Each function makes one row; its arguments are the settings that a spec may give.
"""

from __future__ import annotations

from collections.abc import Callable
import math
import types

from model_lib.parametrization.row import STANDARD, Branch, Learned, Parametrization, Rule

_NO_NORM = ('none',)
_PER_TOKEN = ('layer', 'rms')


def _out(factor: Callable[[Branch], float]):
  return lambda label, branch: factor(branch) if label == 'out' else 1.0


def _not_logits(factor: Callable[[Branch], float]):
  """The factor on all kernels but queries and keys, which move the logits alone."""
  return lambda label, branch: 1.0 if label in ('query', 'key') else factor(branch)


def gpt2() -> Parametrization:
  """Output kernel of each branch / sqrt(number of branches)."""
  return Parametrization(
    'gpt2', 'Radford et al. 2019 (GPT-2)', STANDARD,
    kernel=_out(lambda branch: branch.count ** -0.5), confirmed=False)


def deepnorm() -> Parametrization:
  """N(alpha x + f(x)), alpha = (2L)^1/4; v, out and both mlp kernels Xavier * (8L)^-1/4."""
  return Parametrization(
    'deepnorm', 'Wang et al. 2022 (DeepNet), arXiv:2203.00555', STANDARD,
    skip=lambda branch: (2 * branch.blocks) ** 0.25,
    kernel=_not_logits(lambda branch: (8 * branch.blocks) ** -0.25), xavier=True,
    placements=('post',), norms=_PER_TOKEN,
    reason='its alpha and init bound the update of N(alpha x + f(x)), N a norm of each token')


def subln() -> Parametrization:
  """v, out and both mlp kernels Xavier * sqrt(ln 2L); belongs to the placement subln."""
  return Parametrization(
    'subln', 'Wang et al. 2022 (Magneto), arXiv:2210.06423', STANDARD,
    kernel=_not_logits(lambda branch: math.sqrt(math.log(2 * branch.blocks))), xavier=True,
    placements=('subln',), norms=_PER_TOKEN,
    reason='its init grows with depth and needs the norm before the output kernel')


def fixup() -> Parametrization:
  """x + a f(x), a trained from 1: output kernel 0, the others He * n^(-1/(2m-2)), head 0.

  n is the number of branches, m of matrices in one. The scalar biases of the paper are part of
  the biases that every layer here has.
  """
  return Parametrization(
    'fixup', 'Zhang, Dauphin, Ma 2019, arXiv:1901.09321',
    types.MappingProxyType({**STANDARD, 'readout': Rule(std=0.0, fan_in_power=-0.5)}),
    learned=Learned('scale', lambda branch: 1.0),
    kernel=lambda label, branch: (
      0.0 if label == 'out' else float(branch.count) ** (-1 / (2 * branch.layers - 2))),
    placements=_NO_NORM, reason='it replaces normalization: its init counts on branches without')


def tfixup(part: str = 'encoder') -> Parametrization:
  """No norm; Xavier (v by 2^-1/2), then v, out and both mlp kernels * 0.67 L^-1/4.

  With part=decoder, which in the paper has cross-attention, the factor is (9L)^-1/4. Embeddings
  start with std d^-1/2 (9L)^-1/4.
  """
  def factor(branch):
    blocks = float(branch.blocks)
    return 0.67 * blocks ** -0.25 if part == 'encoder' else (9 * blocks) ** -0.25

  def kernel(label, branch):
    if label in ('query', 'key'):
      return 1.0
    return factor(branch) * (2 ** -0.5 if label == 'value' else 1.0)

  return Parametrization(
    'tfixup', 'Huang et al. 2020, ICML (T-Fixup)', STANDARD, kernel=kernel, xavier=True,
    embedding=lambda dim, blocks: dim ** -0.5 * (9 * blocks) ** -0.25,
    placements=_NO_NORM, reason='it replaces normalization: its init counts on branches without')


def skipinit(start: str = 'zero') -> Parametrization:
  """x + alpha f(x), one trained alpha per branch from 0, or with start=depth from n^-1/2."""
  return Parametrization(
    'skipinit', 'De, Smith 2020, arXiv:2002.10444', STANDARD,
    learned=Learned('alpha', lambda branch: 0.0 if start == 'zero' else branch.count ** -0.5),
    placements=_NO_NORM, reason='alpha stands for the normalization that it replaces',
    confirmed=False)


def rezero() -> Parametrization:
  """x + alpha f(x), one trained alpha per block from 0, shared by its branches."""
  return Parametrization(
    'rezero', 'Bachlechner et al. 2020, arXiv:2003.04887', STANDARD,
    learned=Learned('alpha', lambda branch: 0.0, shared=True),
    placements=_NO_NORM, reason='alpha stands for the normalization that it replaces')


def layerscale(init: float = 1e-5) -> Parametrization:
  """x + diag(lambda) f(N(x)), lambda trained from `init`."""
  return Parametrization(
    'layerscale', 'Touvron et al. 2021 (CaiT), arXiv:2103.17239', STANDARD,
    learned=Learned('lambda', lambda branch: init, per='channel'),
    placements=('pre', 'parallel', 'mix', 'none'),
    reason='a norm behind the branch or the sum takes the factor out again')


def lns() -> Parametrization:
  """x + f(N(x) / sqrt(l)), the same l for both branches of a block; output kernels unscaled."""
  return Parametrization(
    'lns', 'Sun et al. 2025 (LayerNorm scaling), arXiv:2502.05795', STANDARD,
    norm=lambda branch: branch.block ** -0.5, placements=('pre', 'parallel'),
    reason='it scales the norm before a branch, x + f(N(x) / sqrt(l))')


def admin() -> Parametrization:
  """N(omega x + f(x)), omega trained, from what the profiling pass finds (`init_omegas`)."""
  return Parametrization(
    'admin', 'Liu et al. 2020, arXiv:2004.08249', STANDARD,
    learned=Learned('omega', lambda branch: 1.0, per='channel', on='skip'),
    placements=('post',), norms=_PER_TOKEN,
    reason='its omega weighs the skip before a norm of the sum')


def ds_init() -> Parametrization:
  """Kernels of block l / sqrt(l)."""
  return Parametrization(
    'ds_init', 'Zhang, Titov, Sennrich 2019, arXiv:1908.11365', STANDARD,
    kernel=lambda label, branch: branch.block ** -0.5, confirmed=False)


def nf(alpha: float = 0.2) -> Parametrization:
  """x + alpha g f(x / beta), beta^2 = 1 + alpha^2 n after n branches; g trained from 0."""
  return Parametrization(
    'nf', 'Brock et al. 2021 (NF-ResNet), arXiv:2101.08692', STANDARD,
    input=lambda branch: (1 + alpha ** 2 * branch.taken) ** -0.5,
    branch=lambda branch: alpha, learned=Learned('gain', lambda branch: 0.0),
    placements=_NO_NORM, reason='beta is the standard deviation of a stream without norms')


def normformer() -> Parametrization:
  """A trained factor on each head and on the skip of the mlp, both from 1."""
  return Parametrization(
    'normformer', 'Shleifer et al. 2021, arXiv:2110.09456', STANDARD,
    learned=Learned('lambda', lambda branch: 1.0, per='channel', on='skip', kinds=('mlp',)),
    head_scale=True, placements=('normformer',),
    reason='its factors belong to the norms of the placement normformer', confirmed=False)


def ngpt() -> Parametrization:
  """unit(x + |alpha| (unit(f(x)) - x)), alpha trained from 0.05; logits q.k sqrt(head_dim)."""
  return Parametrization(
    'ngpt', 'Loshchilov et al. 2024, arXiv:2410.01131', STANDARD, head_dim_power=0.5,
    learned=Learned('alpha', lambda branch: 0.05, per='channel', on='step', stored_power=-0.5),
    placements=('ngpt',), reason='its alpha is the step along the sphere of the placement ngpt')


# Settings of a row: what each may be. A float takes any finite number >= 0.
CHOICES = {('tfixup', 'part'): ('encoder', 'decoder'), ('skipinit', 'start'): ('zero', 'depth')}
MAKERS = {maker.__name__: maker for maker in (
  gpt2, deepnorm, subln, fixup, tfixup, skipinit, rezero, layerscale, lns, admin, ds_init, nf,
  normformer, ngpt)}
