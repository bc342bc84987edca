"""Norms of the positions of an example, per channel or group of channels."""

from __future__ import annotations

import functools

from model_lib.normalization.entry import BIAS, GAIN, SAME, UNIT_GAIN, Norm, NormParameter

_PER_EXAMPLE = ('scale', 'example_scale', 'channel_scale')
_row = functools.partial(Norm, train_inference=SAME, state=(), causal=False, family='spatial')
_AFFINE = tuple(NormParameter(p.name, p.init, p.per, 'affine') for p in (GAIN, BIAS))
_EXTRA_EPS = NormParameter('eps', 1e-4, 'layer', 'learned_eps')

SPATIAL = (
  _row(
    name='group',
    equation='g * (x - mean(x)) / sqrt(var(x) + eps) + b',
    statistics='positions and the C/groups channels of a group, per example',
    parameters=(GAIN, BIAS),
    init_rule=UNIT_GAIN,
    conventions='eps inside the root, 1e-5 as torch (flax 1e-6, keras 1e-3); 8 groups (flax and '
                'keras 32), gain and bias per channel; biased variance',
    paper='Wu, He 2018, arXiv:1803.08494',
    options=(('groups', 8), ('eps', 1e-5)),
    invariances=('scale', 'example_scale', 'example_shift'),
    presets=(('torch', (('eps', 1e-5),)), ('keras', (('groups', 32), ('eps', 1e-3))),
             ('flax', (('groups', 32), ('eps', 1e-6)))),
  ),
  _row(
    name='instance',
    equation='g * (x - mean(x)) / sqrt(var(x) + eps) + b',
    statistics='positions, per example and channel',
    parameters=_AFFINE,
    init_rule=UNIT_GAIN,
    conventions='eps inside the root, 1e-5 as torch (flax 1e-6); gain and bias as flax '
                '(torch: none by default); biased variance; no running moments',
    paper='Ulyanov, Vedaldi, Lempitsky 2016, arXiv:1607.08022',
    options=(('eps', 1e-5), ('affine', True)),
    spatial=True,
    invariances=(*_PER_EXAMPLE, 'example_shift', 'channel_shift'),
    presets=(('torch', (('eps', 1e-5), ('affine', False))),
             ('flax', (('eps', 1e-6), ('affine', True)))),
  ),
  _row(
    name='frn',
    equation='g * x / sqrt(mean(x^2) + eps + |e|) + b',
    statistics='positions, per example and channel',
    parameters=(GAIN, BIAS, _EXTRA_EPS),
    init_rule=UNIT_GAIN,
    conventions='eps inside the root, 1e-6 (timm 1e-5); e = 0 unless learned_eps, for maps of one '
                'pixel: then trained from 1e-4 (from memory); frn_tlu has the activation',
    paper='Singh, Krishnan 2019, arXiv:1911.09737',
    options=(('eps', 1e-6), ('learned_eps', False)),
    spatial=True, confirmed=False,
    invariances=_PER_EXAMPLE,
  ),
  _row(
    name='frn_tlu',
    equation='max(g * x / sqrt(mean(x^2) + eps + |e|) + b, t)',
    statistics='positions, per example and channel',
    parameters=(GAIN, BIAS, NormParameter('threshold', 0.0, 'channel'), _EXTRA_EPS),
    init_rule='as relu: the activation behind it is the identity',
    conventions='as frn; t per channel starts at 0',
    paper='Singh, Krishnan 2019, arXiv:1911.09737',
    options=(('eps', 1e-6), ('learned_eps', False)),
    spatial=True, confirmed=False,
    invariances=_PER_EXAMPLE,
  ),
)
