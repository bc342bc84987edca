"""Norms whose gain and bias come from a condition."""

from __future__ import annotations

import functools

from model_lib.normalization.entry import (
  PER_CHANNEL, PER_POSITION_CENTRED, SAME, UNIT_GAIN, Norm, NormParameter)

_MAP = (NormParameter('kernel', 0.0, 'condition'), NormParameter('bias', 0.0, 'condition'))
_row = functools.partial(Norm, init_rule=UNIT_GAIN, family='conditional', confirmed=False,
                         condition=True)

CONDITIONAL = (
  _row(
    name='adain',
    equation='sd(condition) * (x - mean(x)) / sd(x) + mean(condition)',
    statistics='positions, per example and channel; of x and of the condition [B, ..., C]',
    train_inference=SAME, parameters=(), state=(),
    conventions='sd = sqrt(var + eps), biased; eps 1e-5 is ours; no 1 +',
    paper='Huang, Belongie 2017, arXiv:1703.06868',
    causal=False, options=(('eps', 1e-5),), spatial=True,
    invariances=('scale', 'example_scale', 'channel_scale', 'example_shift', 'channel_shift'),
  ),
  _row(
    name='film',
    equation='g(c) * x + b(c)',
    statistics='none', train_inference=SAME, parameters=_MAP, state=(),
    conventions='g and b affine in c [B, D], from 1 and 0 (ours)',
    paper='Perez et al. 2017, arXiv:1709.07871',
    causal=True, options=(),
  ),
  _row(
    name='spade',
    equation='(1 + g(map)) * (x - mean(x)) / sqrt(var(x) + eps) + b(map)',
    statistics='examples and positions, per channel',
    train_inference='training: moments of the batch; inference: running moments',
    parameters=_MAP, state=('mean', 'var'),
    conventions='as batch; g and b affine in each position of the map [B, ..., M], from 0 (the '
                'paper: two convolutions)',
    paper='Park et al. 2019, arXiv:1903.07291',
    causal=True, options=(('eps', 1e-5), ('momentum', 0.1), ('running', 'unbiased')), batch=True,
    invariances=PER_CHANNEL,
  ),
  _row(
    name='adaln_zero',
    equation='(1 + s(c)) * (x - mean(x)) / sqrt(var(x) + eps) + t(c), and the gate a(c) of the '
             'branch',
    statistics='channels, per example and position', train_inference=SAME,
    parameters=_MAP, state=(),
    init_rule='s, t, a affine in c [B, D], from 0: the branch starts closed',
    conventions='the layer returns (result, gate); eps 1e-6 is ours',
    paper='Peebles, Xie 2022 (DiT), arXiv:2212.09748',
    causal=True, options=(('eps', 1e-6),),
    invariances=PER_POSITION_CENTRED,
  ),
)
