"""What stands in a norm's place without statistics."""

from __future__ import annotations

import functools

from model_lib.normalization.entry import BIAS, GAIN, SAME, Norm, NormParameter

_row = functools.partial(Norm, statistics='none', train_inference=SAME, state=(), causal=True,
                         family='pointwise')
_ALPHA, _SHIFT = NormParameter('alpha', 0.5, 'layer'), NormParameter('shift', 0.0, 'layer')
_BOUNDED = 'alpha starts at 0.5; the output has second moment below 1 at the start'
_ONE_ALPHA = 'one alpha and one s per layer; the options are their start values'

POINTWISE = (
  _row(
    name='none', equation='x', parameters=(), init_rule='none', conventions='none', paper='none',
    options=(),
  ),
  _row(
    name='dyt',
    equation='g * tanh(alpha * x) + b',
    parameters=(_ALPHA, GAIN, BIAS),
    init_rule=_BOUNDED,
    conventions='one alpha per layer; the option is its start value',
    paper='Zhu, Chen, He, LeCun, Liu 2025, arXiv:2503.10622',
    options=(('alpha', 0.5),),
  ),
  _row(
    name='derf',
    equation='g * erf(alpha * x + s) + b',
    parameters=(_ALPHA, _SHIFT, GAIN, BIAS),
    init_rule=_BOUNDED,
    conventions=_ONE_ALPHA,
    paper='arXiv:2512.10938',
    options=(('alpha', 0.5), ('shift', 0.0)),
  ),
  _row(
    name='pointwise',
    equation='g * f(alpha * x + s) + b; f: isru x / sqrt(x^2 + 1), arctan (2/pi) atan(x), expsign '
             'sign(x) (1 - exp(-|x|)), satursin sin(clip(x, -pi/2, pi/2)), smoothsign '
             'x / (1 + |x|), linear_clip clip(x, -1, 1)',
    parameters=(_ALPHA, _SHIFT, GAIN, BIAS),
    init_rule=_BOUNDED,
    conventions=_ONE_ALPHA,
    paper='arXiv:2512.10938 (the alternatives to erf)',
    options=(('f', 'isru'), ('alpha', 0.5), ('shift', 0.0)),
  ),
  _row(
    name='affine',
    equation='g * x + b',
    parameters=(GAIN, BIAS),
    init_rule='the identity at the start',
    conventions='per channel',
    paper='Touvron et al. 2021 (ResMLP), arXiv:2105.03404',
    options=(),
    confirmed=False,
  ),
  _row(
    name='soft_cap',
    equation='cap * tanh(x / cap)',
    parameters=(),
    init_rule='the identity for x far below the cap',
    conventions='Gemma 2 caps attention logits at 50 and outputs at 30 (from memory)',
    paper='Gemma 2',
    options=(('cap', 30.0),),
    confirmed=False,
  ),
)
