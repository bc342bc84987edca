"""Norms of the channels of each position."""

from __future__ import annotations

import functools

from model_lib.normalization.entry import (
  BIAS, GAIN, PER_POSITION, PER_POSITION_CENTRED, SAME, UNIT_GAIN, Norm, NormParameter)

_row = functools.partial(Norm, statistics='channels, per example and position',
                         train_inference=SAME, state=(), causal=True, family='token')

TOKEN = (
  _row(
    name='layer',
    equation='g * (x - mean(x)) / sqrt(var(x) + eps) + b',
    parameters=(GAIN, BIAS),
    init_rule=UNIT_GAIN,
    conventions='eps inside the root, 1e-5 as torch (flax 1e-6, keras 1e-3); biased variance, '
                'two-pass (flax: one-pass by default)',
    paper='Ba, Kiros, Hinton 2016, arXiv:1607.06450',
    options=(('eps', 1e-5),),
    invariances=PER_POSITION_CENTRED,
    presets=(('torch', (('eps', 1e-5),)), ('keras', (('eps', 1e-3),)),
             ('flax', (('eps', 1e-6),))),
  ),
  _row(
    name='rms',
    equation='g * x / sqrt(mean(x^2) + eps); gain=one_plus: (1 + g) in place of g',
    parameters=(GAIN,),
    init_rule=UNIT_GAIN,
    conventions='eps inside the root, 1e-6 as flax and keras (torch: machine epsilon of the '
                'dtype; its preset has that of float32); gain starts at 1 and multiplies directly '
                '(gain=one_plus as Gemma: 1 + g, g = 0)',
    paper='Zhang, Sennrich 2019, arXiv:1910.07467',
    options=(('eps', 1e-6), ('gain', 'direct')),
    invariances=PER_POSITION,
    presets=(('torch', (('eps', 2.0 ** -23),)), ('keras', (('eps', 1e-6),)),
             ('flax', (('eps', 1e-6),))),
  ),
  _row(
    name='prms',
    equation='g * x / (rms(first p C channels) + eps)',
    parameters=(GAIN,),
    init_rule=UNIT_GAIN,
    conventions='int(p C) channels; eps outside the root, 1e-8; p and eps from memory',
    paper='Zhang, Sennrich 2019, arXiv:1910.07467',
    options=(('p', 0.0625), ('eps', 1e-8)),
    confirmed=False,
    invariances=PER_POSITION,
  ),
  _row(
    name='unit',
    equation='x / max(|x|, eps)',
    parameters=(),
    init_rule='its output has second moment 1/C',
    conventions='eps bounds the length from below',
    paper='none (keras UnitNormalization)',
    options=(('eps', 1e-12),),
    invariances=PER_POSITION,
  ),
  _row(
    name='scale_norm',
    equation='g * x / max(|x|, eps), one g',
    parameters=(NormParameter('scale', 'sqrt(C)', 'layer'),),
    init_rule=UNIT_GAIN,
    conventions='eps bounds the length from below; g starts at sqrt(C)',
    paper='Nguyen, Salazar 2019, arXiv:1910.05895',
    options=(('eps', 1e-12),),
    invariances=PER_POSITION,
  ),
  _row(
    name='pixel',
    equation='x / sqrt(mean(x^2) + eps)',
    parameters=(),
    init_rule=UNIT_GAIN,
    conventions='eps inside the root, 1e-8; rms without a gain',
    paper='Karras et al. 2017, arXiv:1710.10196',
    options=(('eps', 1e-8),),
    confirmed=False,
    invariances=PER_POSITION,
  ),
  _row(
    name='pono',
    equation='(x - mean(x)) / sqrt(var(x) + eps)',
    parameters=(),
    init_rule=UNIT_GAIN,
    conventions='the layer alone drops the moments; token.positional keeps them for '
                'token.moment_shortcut; biased variance, eps 1e-5; layer without gain and bias',
    paper='Li et al. 2019, arXiv:1907.04312',
    options=(('eps', 1e-5),),
    confirmed=False,
    invariances=PER_POSITION_CENTRED,
  ),
  _row(
    name='simple',
    equation='g * x / sqrt(var(x) + eps)',
    parameters=(GAIN,),
    init_rule=UNIT_GAIN,
    conventions='the variance is centred, x is not; biased, eps 1e-6 inside the root',
    paper='none (timm SimpleNorm)',
    options=(('eps', 1e-6),),
    confirmed=False,
    invariances=PER_POSITION,
  ),
  _row(
    name='frozen_layer',
    equation='g * (x - mean(x)) / s + b, s a number; its own for the first position',
    statistics='channels, per example and position (the mean alone)',
    parameters=(GAIN, BIAS), state=('sigma', 'sigma_first'),
    init_rule='s is the mean sd of the norm that it stands for, from a calibration',
    conventions='no eps: s contains it; the first position of [B, T, C] has sigma_first; the '
                'option is the start of both',
    paper='arXiv:2507.02559',
    options=(('sigma', 1.0),),
    invariances=('example_shift', 'position_shift'),
  ),
  _row(
    name='lrn',
    equation='x / (k + a sum(x^2))^beta, a = alpha (paper) or alpha / n (torch)',
    statistics='n channels around each, per example and position',
    parameters=(),
    init_rule='none: its output is x / k^beta for small x',
    conventions='convention=paper: k + alpha sum, k 2; torch and Caffe: k + (alpha / n) sum, '
                'torch k 1; zeros outside the channels',
    paper='Krizhevsky, Sutskever, Hinton 2012 (AlexNet)',
    options=(('n', 5), ('k', 2.0), ('alpha', 1e-4), ('beta', 0.75), ('convention', 'paper')),
    confirmed=False,
    presets=(('torch', (('k', 1.0), ('convention', 'torch'))),
             ('paper', (('k', 2.0), ('convention', 'paper')))),
  ),
  _row(
    name='divisive',
    equation='g * v / sqrt(sigma^2 + mean(v^2)) + b, v = x - mean(x)',
    statistics='n channels around each, per example and position',
    parameters=(NormParameter('sigma', 1.0, 'layer'), GAIN, BIAS),
    init_rule=UNIT_GAIN,
    conventions='windows of n channels, cut off at the ends; one trained sigma; n and its start '
                'are ours',
    paper='Ren et al. 2016, arXiv:1611.04520',
    options=(('n', 5), ('sigma', 1.0)),
    confirmed=False,
    invariances=PER_POSITION_CENTRED,
  ),
)
