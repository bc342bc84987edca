"""Claims: what may be registered, joined with outcomes, written and read."""
from __future__ import annotations

import dataclasses
import json
import math

import pytest

from launch.study import claims as c
from model_lib.errors import UserError

WORSE = c.Claim('identity-worse', 'The identity loses to ReLU.', 'Sec. 3', None, 'test loss, nats',
                'the paired 95 % interval excludes 0', 'a null row of copies of ReLU')
ACCURACY = c.Claim('accuracy', 'CRReLU reaches 0.9.', 'Table 1', 0.9, 'test accuracy',
                   'the interval holds 0.9.', 'shuffled labels')
GOOD = c.Outcome('reproduced', 0.011, (0.008, 0.014), 8)


def test_records_have_the_contracts_fields_and_survive_the_file(tmp_path):
  unlearned = c.Outcome('not testable', math.nan, (math.nan, 1.0), 8, note='ReLU did not learn')
  verdicts = c.evaluate([WORSE, ACCURACY], {'accuracy': unlearned, 'identity-worse': GOOD})
  path = tmp_path / 'claims.json'
  c.write_claims(path, verdicts)
  records = c.read_claims(path)
  assert [tuple(record) for record in records] == [c.FIELDS] * 2
  assert records[0] == {
      'id': 'identity-worse', 'statement': 'The identity loses to ReLU.', 'source': 'Sec. 3',
      'paper_value': None, 'measure': 'test loss, nats',
      'rule': 'the paired 95 % interval excludes 0. Control: a null row of copies of ReLU.',
      'ours': 0.011, 'interval': [0.008, 0.014], 'n': 8, 'verdict': 'reproduced'}
  assert (records[1]['ours'], records[1]['interval']) == (None, None)
  assert records[1]['rule'].endswith('Not testable: ReLU did not learn.')
  assert 'NaN' not in path.read_text()


@pytest.mark.parametrize('bad, message', [
    (dict(verdict='passed'), 'reproduced, not reproduced, not testable'),
    (dict(verdict='not testable'), 'note'),
    (dict(verdict='reproduced', n=3), 'finite number'),
    (dict(verdict='reproduced', ours=math.nan, n=3), 'finite number'),
    (dict(verdict='reproduced', ours=1.0), 'n of at least 1'),
    (dict(verdict='not reproduced', ours='high'), 'ours must be a number'),
    (dict(verdict='not reproduced', interval=(2, 1)), r'\[low, high\]'),
    (dict(verdict='not reproduced', interval=0.5), 'pair'),
    (dict(verdict='not reproduced', n=1.5), 'count'),
])
def test_an_outcome_that_says_too_little_is_refused(bad, message):
  with pytest.raises(ValueError, match=message):
    c.Outcome(**bad)


def test_every_claim_needs_an_outcome_and_every_outcome_a_claim():
  with pytest.raises(ValueError, match='no outcome .* accuracy'):
    c.evaluate([WORSE, ACCURACY], {'identity-worse': GOOD})
  with pytest.raises(ValueError, match='unknown claims extra'):
    c.evaluate([WORSE], {'identity-worse': GOOD, 'extra': GOOD})
  with pytest.raises(ValueError, match='more than one claim is called identity-worse'):
    c.evaluate([WORSE, WORSE], {'identity-worse': GOOD})
  assert [v.claim.id for v in c.evaluate([ACCURACY, WORSE], {
      'identity-worse': GOOD, 'accuracy': GOOD})] == ['accuracy', 'identity-worse']


@pytest.mark.parametrize('change', [{'rule': ' '}, {'control': ''}, {'paper_value': math.nan},
                                    {'paper_value': 'high'}, {'paper_value': True}])
def test_a_claim_without_a_rule_a_control_or_a_number_is_refused(change):
  with pytest.raises(ValueError, match='identity-worse'):
    dataclasses.replace(WORSE, **change)


def test_a_claim_cannot_be_changed_after_the_run():
  with pytest.raises(dataclasses.FrozenInstanceError):
    WORSE.rule = 'anything passes'


def _broken(change):
  record = c.Verdict(WORSE, GOOD).record()
  record.update(change)
  return json.dumps([{k: v for k, v in record.items() if v != 'drop'}])


@pytest.mark.parametrize('text, message', [
    ('[{', 'damaged'), ('{}', 'a list'), ('[1]', 'lacks id'),
    (_broken({'n': 'drop'}), 'claim 0 lacks n'),
    (_broken({'verdict': 'ok'}), "verdict 'ok'"),
])
def test_a_damaged_file_ends_in_one_line(tmp_path, text, message):
  path = tmp_path / 'claims.json'
  path.write_text(text)
  with pytest.raises(UserError, match=message) as error:
    c.read_claims(path)
  assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_a_check_has_neither_interval_nor_n(tmp_path):
  check = dataclasses.replace(WORSE, id='invariant', kind='check')
  path = tmp_path / 'claims.json'
  c.write_claims(path, c.evaluate([check, ACCURACY], {
      'invariant': c.Outcome('reproduced', 2e-15, None, None), 'accuracy': GOOD}))
  found = c.read_claims(path)
  assert (found[0]['kind'], found[0]['n'], found[0]['interval']) == ('check', None, None)
  assert 'kind' not in found[1]
  with pytest.raises(ValueError, match='finite number'):
    c.Outcome('reproduced', None, None, None)
  with pytest.raises(ValueError, match='no interval'):
    c.Outcome('reproduced', 1.0, (0.0, 2.0), None)
  for claim, outcome in ((check, GOOD), (WORSE, c.Outcome('reproduced', 1.0, None, None))):
    with pytest.raises(ValueError, match='only a check has n=None'):
      c.evaluate([claim], {claim.id: outcome})
  with pytest.raises(ValueError, match='estimate, check'):
    dataclasses.replace(WORSE, kind='guess')
