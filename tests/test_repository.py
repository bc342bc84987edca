"""Rules that hold for the whole tree: who imports whom, what nobody imports, how long a file is."""
from __future__ import annotations

import ast
from collections.abc import Iterator
import graphlib
import os
from pathlib import Path
import textwrap
import warnings

import pytest

from tests import helpers
from tests import skips

PACKAGES = ('model_lib', 'data', 'launch', 'experiments')

# package -> packages that it must not import, at the top of a file or inside a function.
FORBIDDEN = {
  'model_lib': ('data', 'launch', 'experiments'),
  'data': ('model_lib', 'launch', 'experiments'),
  'launch': ('experiments',),
  'model_lib.activations': (
    'model_lib.models', 'model_lib.training', 'model_lib.search', 'model_lib.analysis',
    'model_lib.transforms', 'model_lib.interop'),
  'model_lib.normalization': (
    'model_lib.models', 'model_lib.training', 'model_lib.search', 'model_lib.analysis',
    'model_lib.transforms', 'model_lib.interop'),
  'model_lib.parametrization': (
    'model_lib.search', 'model_lib.analysis', 'model_lib.transforms', 'model_lib.interop'),
  'model_lib.models': (
    'model_lib.training', 'model_lib.search', 'model_lib.analysis', 'model_lib.transforms',
    'model_lib.interop'),
  'model_lib.training': (
    'model_lib.search', 'model_lib.analysis', 'model_lib.transforms', 'model_lib.interop'),
}

# It fetches datasets in a child process, where it imports TensorFlow inside a function.
TENSORFLOW_CHILD = 'data.tfds_import'

# Loading these can run code from the file, or (joblib, shelve) is built on what can.
UNPICKLING = ('pickle', 'cloudpickle', 'dill', 'joblib', 'shelve', 'marshal')


def is_within(module: str, package: str) -> bool:
  return module == package or module.startswith(package + '.')


def module_name(root: Path, file: Path) -> str:
  parts = list(file.relative_to(root).with_suffix('').parts)
  if parts[-1] == '__init__':
    parts.pop()
  return '.'.join(parts)


def modules(root: Path) -> dict[str, Path]:
  files = (file for package in PACKAGES for file in sorted((root / package).rglob('*.py')))
  return {module_name(root, file): file for file in files}


def imports(file: Path, name: str) -> Iterator[str]:
  """Dotted names that a file imports anywhere; `from a import b` gives 'a.b', a module or not."""
  package = name if file.name == '__init__.py' else name.rpartition('.')[0]
  for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ''
      if node.level:
        parents = package.split('.')[:len(package.split('.')) - node.level + 1]
        base = '.'.join([*parents, *([base] if base else [])])
      yield from (f'{base}.{alias.name}' for alias in node.names)
    elif isinstance(node, ast.Call) and _called(node) in ('import_module', '__import__'):
      argument = node.args[0] if node.args else None
      if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        yield argument.value


def _called(node: ast.Call) -> str:
  return getattr(node.func, 'attr', getattr(node.func, 'id', ''))


def wrong_arrows(root: Path) -> list[str]:
  return [
    f'{name} imports {target}'
    for name, file in modules(root).items() for target in imports(file, name)
    if any(is_within(name, source) and is_within(target, forbidden)
           for source, targets in FORBIDDEN.items() for forbidden in targets)]


def circle(root: Path) -> list[str]:
  """Modules that import each other in a circle, also from inside functions; [] without one."""
  files = modules(root)
  graph = {}
  for name, file in files.items():
    targets = {
      target if target in files else target.rpartition('.')[0] for target in imports(file, name)}
    graph[name] = (targets & files.keys()) - {name}
  try:
    graphlib.TopologicalSorter(graph).prepare()
  except graphlib.CycleError as error:
    return error.args[1]
  return []


def forbidden_loaders(root: Path) -> list[str]:
  """Imports of TensorFlow or of an unpickler, and calls that unpickle."""
  found = []
  for name, file in modules(root).items():
    for target in imports(file, name):
      top = target.partition('.')[0]
      if top in UNPICKLING or (top == 'tensorflow' and name != TENSORFLOW_CHILD):
        found.append(f'{name} imports {target}')
    for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
      if isinstance(node, ast.Call):
        allows = any(
            keyword.arg == 'allow_pickle' and getattr(keyword.value, 'value', True) is not False
            for keyword in node.keywords)
        if allows or _called(node) in ('read_pickle', 'to_pickle'):
          found.append(f'{name}:{node.lineno} unpickles')
  return found


def skip_sites(file: Path, path: str) -> Iterator[str]:
  """'path::function' for each skip in a file: pytest.skip, importorskip, mark.skip, unittest's."""
  def visit(node, function):
    name = getattr(node, 'attr', None)
    if isinstance(node, ast.alias):  # a bare name can skip only where it was imported
      name = node.name
    if name in ('skip', 'skipif', 'importorskip', 'skipIf', 'skipUnless', 'skipTest', 'SkipTest'):
      yield f'{path}::{function}'
    inner = function
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      for decorator in node.decorator_list:
        yield from visit(decorator, node.name)
      inner = node.name
    for child in ast.iter_child_nodes(node):
      if child not in getattr(node, 'decorator_list', ()) or isinstance(node, ast.ClassDef):
        yield from visit(child, inner)
  yield from visit(ast.parse(file.read_text(encoding='utf-8')), '<module>')


def write(root: Path, files: dict[str, str]) -> Path:
  for path, text in files.items():
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(textwrap.dedent(text))
  return root


def test_arrows_run_one_way():
  assert not wrong_arrows(helpers.ROOT)


@pytest.mark.parametrize('path, text', [
  ('model_lib/a.py', 'import data.load'),
  ('model_lib/sub/a.py', 'def f():\n  from launch import study'),
  ('data/a.py', 'from model_lib.errors import UserError'),
  ('launch/study/a.py', 'import importlib\nimportlib.import_module("experiments.a")'),
  ('launch/a.py', 'import experiments'),
  ('model_lib/activations/a.py', 'from ..models import mlp'),
  ('model_lib/models/__init__.py', 'from ..training import loop'),
])
def test_a_wrong_arrow_is_found(tmp_path, path, text):
  assert len(wrong_arrows(write(tmp_path, {path: text}))) == 1


def test_allowed_arrows_pass(tmp_path):
  assert not wrong_arrows(write(tmp_path, {
    'experiments/a.py': 'from launch.study import config\nimport data, model_lib',
    'launch/a.py': 'from model_lib import errors\nfrom data import load\nimport database',
    'model_lib/models/a.py': 'from .. import activations\nfrom . import training_free',
  }))


def test_no_circle():
  assert not circle(helpers.ROOT)


def test_a_circle_is_found(tmp_path):
  files = {'data/a.py': 'from data import b', 'data/b.py': 'def f():\n  from .a import x'}
  assert set(circle(write(tmp_path, files))) == {'data.a', 'data.b'}
  (tmp_path / 'data/b.py').write_text('from .c import x')
  assert not circle(tmp_path)


def test_neither_tensorflow_nor_pickle():
  assert not forbidden_loaders(helpers.ROOT)


@pytest.mark.parametrize('text', [
  'import tensorflow as tf', 'def f():\n  from tensorflow.io import gfile', 'import pickle',
  'numpy.load(path, allow_pickle=True)', 'numpy.load(path, allow_pickle=flag)',
  'pandas.read_pickle(path)',
])
def test_a_forbidden_loader_is_found(tmp_path, text):
  assert len(forbidden_loaders(write(tmp_path, {'data/a.py': text}))) == 1


def test_allowed_loaders_pass(tmp_path):
  text = 'import tensorflow_datasets, tensorstore\nnumpy.load(path, allow_pickle=False)'
  assert not forbidden_loaders(write(tmp_path, {'data/a.py': text}))


def test_the_tensorflow_child_imports_it_late():
  done = helpers.run_python(
      f'import {TENSORFLOW_CHILD}', env={'PYTHONPATH': str(helpers.FAKE_TENSORFLOW)})
  assert done.returncode == 0, done.stderr


LIGHT = (
  'import sys, {module}\n'
  'heavy = {{"jax", "tensorflow_datasets", "orbax", "matplotlib"}} & set(sys.modules)\n'
  'sys.exit(f"{module} imports {{sorted(heavy)}}" if heavy else 0)')


@pytest.mark.parametrize('module', [
  'data', 'launch', 'launch.study', 'model_lib', 'model_lib.training', 'experiments'])
def test_light_import(module):
  """These are imported before the signal watcher and the thread count are set: jax must wait."""
  done = helpers.run_python(LIGHT.format(module=module))
  assert done.returncode == 0, done.stderr


def test_a_heavy_import_is_found():
  done = helpers.run_python(LIGHT.format(module='flax.struct'))
  assert done.returncode == 1 and "imports ['jax'" in done.stderr


def test_fake_tensorflow_raises():
  done = helpers.run_python('import tensorflow', env={'PYTHONPATH': str(helpers.FAKE_TENSORFLOW)})
  assert done.returncode == 1 and 'RuntimeError: TensorFlow was imported' in done.stderr


def test_files_have_one_subject():
  lengths = {
    name: len(file.read_text(encoding='utf-8').splitlines())
    for name, file in modules(helpers.ROOT).items()}
  assert len(lengths) >= 10
  assert not {name: length for name, length in lengths.items() if length > 400}


def test_every_skip_is_listed():
  files = sorted((helpers.ROOT / 'tests').rglob('*.py'))
  sites = {
    site for file in files if file.name != 'test_repository.py'
    for site in skip_sites(file, file.relative_to(helpers.ROOT).as_posix())}
  assert sites == set(skips.SKIPS)
  assert all(len(reason) > 20 for reason in skips.SKIPS.values())


def test_every_kind_of_skip_is_found(tmp_path):
  file = write(tmp_path, {'a.py': '''
    import pytest
    torch = pytest.importorskip('torch')
    @pytest.mark.skipif(True, reason='')
    def test_a(): pass
    class TestB:
      @pytest.mark.skip
      def test_b(self): pass
    def test_c():
      if x:
        pytest.skip('')
    def test_d():
      iterator.skipped = 1
  '''}) / 'a.py'
  assert list(skip_sites(file, 'a')) == ['a::<module>', 'a::test_a', 'a::test_b', 'a::test_c']


def test_settings_hold():
  """What conftest.py and setup.cfg promise is in force, here and in children."""
  import jax
  import jax.numpy as jnp
  with pytest.raises(ValueError, match='rank_promotion'):
    jnp.ones((2, 3)) + jnp.ones(3)
  with pytest.raises(UserWarning):
    warnings.warn('a warning is an error')
  assert jax.default_backend() in jax.config.jax_platforms
  done = helpers.run_python(
      'import os, jax; print(os.environ["NPROC"], os.environ["ACTNORM_DATA_DIR"], '
      'jax.config.jax_numpy_rank_promotion)')
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == [os.environ['NPROC'], os.environ['ACTNORM_DATA_DIR'], 'raise']


def test_compile_cache_serves_children(compile_cache):
  done = helpers.run_python('import jax; jax.jit(lambda x: x + 1)(1.0).block_until_ready()')
  assert done.returncode == 0, done.stderr
  assert any(compile_cache.iterdir())


def test_children_do_not_inherit_by_accident(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=4')
  assert 'XLA_FLAGS' not in helpers.child_environment()
  assert helpers.child_environment({'XLA_FLAGS': 'x'})['XLA_FLAGS'] == 'x'


def test_a_child_that_hangs_is_killed():
  with pytest.raises(AssertionError, match='(?s)more than 3 s.*started'):
    helpers.run_python('import time; print("started", flush=True); time.sleep(60)', timeout=3)
