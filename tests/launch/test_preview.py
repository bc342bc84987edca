"""--list and --dry_run: which runs, how many parameters, and about how long."""
from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from experiments.activation_search import STUDY
from launch.study import config as config_lib
from launch.study import flags
from launch.study import preview
from tests.launch import study_runs

# 4 fixed activations, 2 copies of ReLU and crrelu; 3 rates; 2 fresh seeds, 2 with shuffled labels.
SMOKE = {
    'mlp-select-fixed': (4 + 2) * 3, 'mlp-select-crrelu': 3,
    # With equal losses the middle rate is chosen, so that no arm is widened.
    'mlp-fresh-fixed': (4 + 2) * 2 + 2, 'mlp-fresh-crrelu': 2,
}
PARAMETERS = (64 + 1) * 64 + (64 + 1) * 64 + (64 + 1) * 10


def parse(*arguments: str) -> flags.Parsed:
  return flags.parse(['study', '--preset=smoke', '--list', *arguments], STUDY.name, STUDY.config,
                     STUDY.presets)


def listed(text: str) -> dict[str, dict[str, float]]:
  """The lines of the table by cohort."""
  found = {}
  for line in text.splitlines():
    if line.startswith('mlp-'):
      name, model, *numbers = line.split()
      assert model == 'mlp'
      found[name] = dict(zip(('runs', 'steps', 'parameters', 'mib', 'seconds'),
                             map(float, numbers), strict=True))
  return found


def test_the_list_has_every_cohort_with_its_runs():
  text = preview.runs(STUDY, parse())
  rows = listed(text)
  assert {name: row['runs'] for name, row in rows.items()} == SMOKE
  expected = preview.expected_cohorts(STUDY, parse().config)
  assert [[c.name for c in asked] for asked in expected] == [list(SMOKE)[:2], list(SMOKE)[2:]]
  assert {c.name: len(c.members) for asked in expected for c in asked} == SMOKE
  assert {row['steps'] for row in rows.values()} == {60}
  assert text.startswith('activation_search on digits\n')
  assert f'\n{sum(SMOKE.values())} runs, about ' in text
  assert len([line for line in text.splitlines() if line.endswith(' come on top.')]) == 1
  # An activation with a parameter has one per layer.
  assert {name: row['parameters'] for name, row in rows.items()} == {
      name: PARAMETERS + 2 * name.endswith('crrelu') for name in SMOKE}


def test_a_study_that_asks_once_has_nothing_on_top():
  def once(config):
    yield next(STUDY.cohorts(config))
  text = preview.runs(dataclasses.replace(STUDY, cohorts=once), parse())
  assert list(listed(text)) == list(SMOKE)[:2] and 'earlier results' not in text


def test_what_a_preset_lacks_is_said_below_its_list():
  noted = dataclasses.replace(STUDY, preset_notes={'smoke': ('A network: not implemented.',),
                                                   'cpu': ('Nothing.',)})
  text = preview.runs(noted, parse())
  assert text.rstrip().endswith('\nA network: not implemented.') and 'Nothing' not in text
  paper = ' '.join(STUDY.preset_notes['paper'])
  for said in ('ViT-Tiny', 'without distillation', 'TNT-Small: not implemented', 'CIFAR-100',
               'ImageNet-1K'):
    assert said in paper


def test_the_dry_run_is_the_config_and_the_same_table(tmp_path):
  parsed = parse('--dry_run', f'--workdir={tmp_path / "run"}', '--config.mlp.steps=45')
  text = preview.dry_run(STUDY, parsed)
  shown, end = json.JSONDecoder().raw_decode(text)
  assert shown == config_lib.to_dict(parsed.config) and shown['mlp']['steps'] == 45
  assert text[end:].strip() == preview.runs(STUDY, parsed).strip()
  assert {row['steps'] for row in listed(text).values()} == {45}
  assert not list(tmp_path.iterdir())


def test_estimates_grow_with_the_work():
  few = listed(preview.runs(STUDY, parse()))['mlp-fresh-fixed']
  many = listed(preview.runs(STUDY, parse(
      '--config.mlp.fresh_seeds=2000', '--config.mlp.shuffled_seeds=2000')))['mlp-fresh-fixed']
  assert many['runs'] == 1000 * few['runs']
  assert many['mib'] > 100 * few['mib'] and many['seconds'] > 10 * few['seconds']


@pytest.mark.parametrize('argument, words', [
    ('--config.mlp.activations=relu,geluu', 'geluu'), ('--config.dataset=mnist', 'mnist')])
def test_what_cannot_run_cannot_be_listed(argument, words):
  with pytest.raises(ValueError, match=words):
    preview.runs(STUDY, parse(argument))


def test_the_estimated_time_is_of_the_right_order(reference):
  arguments = study_runs.arguments(Path('unused'))
  rows = listed(preview.runs(STUDY, flags.parse(
      ['study', *arguments], STUDY.name, STUDY.config, STUDY.presets)))
  timing = [json.loads(line) for line in
            (reference.workdir / 'timing.jsonl').read_text().splitlines()]
  true = sum(t['prepare_s'] + t['train_s'] + t['evaluate_s'] for t in timing)
  estimated = sum(rows[t['cohort']]['seconds'] for t in timing)
  assert len(timing) == len(study_runs.COHORTS)
  assert true / 10 < estimated < true * 10
