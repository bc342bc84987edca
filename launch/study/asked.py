"""Checks what a study asks for at a time before any of it is trained."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import Any

from launch.study import config as config_lib
from launch.study.study import Measurement
from model_lib.errors import UserError
from model_lib.training.cohort import Cohort, Member, identity


def check_distinct(config: Any, asked: Sequence[Cohort | Measurement],
                   earlier: Collection[str] = ()) -> None:
  """Checks that no two runs have equal tags, by which rows are told apart.

  Args:
    config: the study's config, from which the runs were made.
    asked: what the study asks for at a time.
    earlier: identities of the runs that it asked for before.

  Raises:
    UserError: two runs are equal since a list in the config names an arm twice.
    ValueError: they are for another reason, which is a mistake of the study.
  """
  seen = set(earlier)
  for cohort in asked:
    if isinstance(cohort, Measurement):
      continue
    for member in cohort.members:
      tags = identity(member)
      if tags in seen:
        _refuse_repetition(config, member)
        raise ValueError(f'cohort {cohort.name}: two runs have the tags {tags}')
      seen.add(tags)


def _refuse_repetition(config: Any, member: Member) -> None:
  """Raises UserError for a list in the config that has one of the run's tags twice."""
  for leaf in config_lib.leaves(type(config)):
    items = functools.reduce(getattr, leaf.path.split('.'), config) if leaf.is_list else ()
    for item in items:
      if items.count(item) > 1 and item in member.tags.values():
        raise UserError(f'config.{leaf.path}: {item} stands there twice')
