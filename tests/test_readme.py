"""README.md and the page of results: tables are those of the records, links lead somewhere.

All code of README.md runs, in a copy of the tree; the page of results has none.
A block of bash is run command by command; what trains is run with --preset=smoke and a smaller
config, compiled without optimization, and the two scripts themselves are not run. A block of Python
whose first line names a file is written there, or to its end; the others are executed, all in one
process after the last of them. Otherwise the order is that of the page, and the blocks share the
directory.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
from pathlib import Path
import posixpath
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from launch.readme import PAGES
from tests import helpers
from tests.data import make_files

README, RESULTS = PAGES
SCRIPTS = ('bash launch/quickstart.sh', 'bash launch/test.sh')
# The rates are far apart, so that none at an edge is chosen and no cohort more becomes necessary.
SMALLER: Mapping[str, Sequence[str]] = {
  'experiments.activation_search': [
    '--preset=smoke', '--config.mlp.activations=relu,gelu', '--config.rate_factors=0.1,1,10',
    '--config.mlp.null_copies=1', '--config.mlp.shuffled_seeds=1',
    '--config.mlp.steps=20', '--config.mlp_widths=16', '--config.io.figures=false',
    '--config.io.checkpoint_interval_s=60', '--config.search.operators=zero,relu,tanh,add',
    '--config.search.live_evaluations=4', '--config.search.eafo_steps=1',
    '--config.search.finalists=1', '--config.eafo.activations=relu,tanh,gelu'],
  'experiments.normalization_basics': [
    '--preset=smoke', '--config.parts=fast_variance', '--config.io.figures=false'],
  'experiments.norm_placement': [
    '--preset=smoke', '--config.stems=plain', '--config.patch=8', '--config.steps=10',
    '--config.batch_size=4', '--config.io.figures=false'],
  'experiments.layernorm_removal': [
    '--preset=smoke', '--config.small.bases=3', '--config.small.depth=1', '--config.small.dim=16',
    '--config.arms=vanilla,ln_free', '--config.rate_factors=1', '--config.card_windows=8',
    '--config.io.figures=false'],
  'experiments.depth_mup': [
    '--preset=smoke', '--config.parts=width', '--config.width.steps=8',
    '--config.io.figures=false'],
  'experiments.coordinate_check': ['--sizes=16,32', '--seeds=2', '--steps=2'],
  'experiments.gallery': ['--preset=smoke', '--config.activations=relu,gelu', '--config.norms=none,layer'],
  'experiments.mystudy': ['--preset=smoke', '--config.io.figures=false'],
  'launch.record': ['--allow_dirty'],  # the copy is under no version control
}
PLACE = re.compile(r'# (at the end of )?(\S+\.py)$')
RUN_BLOCKS = '''
import json, sys
for line, source in json.load(sys.stdin):
  # The empty lines make the traceback name the line of the page.
  exec(compile('\\n' * line + source, 'README.md', 'exec'), {'__name__': '__main__'})
'''
# Compiling takes most of the time, and nothing here is about bits.
QUICKLY = {'JAX_DISABLE_MOST_OPTIMIZATIONS': 'true'}
PREPARE = '''
import json, sys
from data.prepare import main
print(json.dumps([main(arguments) for arguments in json.load(sys.stdin)]))
'''


@dataclasses.dataclass(frozen=True)
class Block:
  """A fenced block: its language, the number of its first fence's line, its text."""

  language: str
  line: int
  source: str

  @property
  def place(self) -> re.Match | None:
    """The file that the block belongs into, where its first line names one."""
    return PLACE.match(self.source.partition('\n')[0]) if self.language == 'python' else None


def blocks(text: str) -> list[Block]:
  found, start, language = [], None, ''
  lines = text.splitlines()
  for number, line in enumerate(lines, 1):
    if line.startswith('```') and start is None:
      start, language = number, line[3:]
    elif line == '```':
      found.append(Block(language, start, '\n'.join(lines[start:number - 1]) + '\n'))
      start = None
  assert start is None, f'README.md:{start}: the block has no end'
  return found


def read(page: str) -> str:
  return (helpers.ROOT / page).read_text(encoding='utf-8')


def anchors(text: str) -> list[str]:
  """The names that GitHub gives the headings of a page."""
  titles = re.findall(r'^#+ (.*)$', re.sub(r'(?ms)^```.*?^```$', '', text), re.MULTILINE)
  return [re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles]


def broken_links(page: str, root: Path) -> list[str]:
  """The links of a page to a file or a heading that does not exist; web addresses are left out."""
  found = []
  for link in re.findall(r'\]\(([^)\s]+)\)', (root / page).read_text(encoding='utf-8')):
    if link.startswith('https://'):
      continue
    path, _, heading = link.partition('#')
    file = root / posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else (
        root / page)
    if not file.exists() or heading and heading not in anchors(file.read_text(encoding='utf-8')):
      found.append(link)
  return found


def run(command: Sequence[str], tree: Path, where: str, stdin: str = '') -> str:
  """Runs a command in the copy; returns what it prints. A failure tells where it stands."""
  done = subprocess.run(command, cwd=tree, env=helpers.child_environment(QUICKLY), input=stdin,
                        capture_output=True, text=True, timeout=300, check=False)
  assert done.returncode == 0, (
      f'{where}: {shlex.join(command)[:300]}\nended with {done.returncode}\n'
      f'{done.stdout[-2000:]}\n{done.stderr[-4000:]}')
  return done.stdout


def run_python(waiting: Sequence[Block], tree: Path) -> None:
  """Executes blocks one after the other in one child, each with a namespace of its own."""
  if waiting:
    run([sys.executable, '-c', RUN_BLOCKS], tree, f'README.md:{waiting[0].line}',
        json.dumps([(block.line, block.source) for block in waiting]))


def put(block: Block, tree: Path) -> None:
  """Writes a block to the file that its first line names."""
  at_end, path = block.place.groups()
  file = tree / path
  assert file.exists() == bool(at_end), f'README.md:{block.line}: {path}'
  old = file.read_text() + '\n\n' if at_end else ''
  file.write_text(old + block.source.partition('\n')[2])


def run_command(line: str, tree: Path, where: str) -> None:
  """Runs one line of bash, smaller."""
  words = shlex.split(line)
  assert words[:2] == ['python', '-m'], f'{where}: {line}'
  module, rest = words[2], words[3:]
  if 'runs/quickstart' in line and not (tree / 'runs/quickstart').exists():
    shutil.copytree(tree / 'runs/cpu', tree / 'runs/quickstart')  # stands for the script's
  if module.startswith('experiments.'):
    given = {word.partition('=')[0] for word in rest} - {'--preset'}
    rest = [word for word in rest if not word.startswith('--preset=')] + [
        word for word in SMALLER[module] if word.partition('=')[0] not in given]
  else:
    rest += SMALLER.get(module, [])
  run([sys.executable, '-m', module, *rest], tree, where)


def prepare(lines: Sequence[str], tree: Path, where: str) -> None:
  """Runs all `data.prepare` commands in one child, on small files in the published formats.

  Where no --variant names the deviation, the small file must be refused and pass with one.
  """
  commands = [shlex.split(line)[3:] for line in lines]
  with_variant = [[*c, *(['--variant=small'] if not any('--variant' in w for w in c) else [])]
                  for c in commands]
  expected = [2 if c != v else 0 for c, v in zip(commands, with_variant, strict=True)]
  out = run([sys.executable, '-c', PREPARE], tree, where, json.dumps(commands + with_variant))
  assert json.loads(out.splitlines()[-1]) == expected + [0] * len(commands)
  assert expected.count(2) >= 4 and expected.count(0) >= 2


def make_downloads(folder: Path) -> None:
  folder.mkdir()
  make_files.write_mnist(folder / 'mnist')
  make_files.write_mnist(folder / 'fashion')
  rows = make_files.write_cifar10(folder / 'cifar10-jpeg75')
  make_files.write_archive(folder / 'cifar-10-binary.tar.gz', {
    f'cifar-10-batches-bin/{name}': array.tobytes() for name, array in rows.items()})
  make_files.write_archive(folder / 'cifar-100-binary.tar.gz', {
    f'cifar-100-binary/{name}.bin': make_files.cifar_rows(n, 2, 100).tobytes()
    for name, n in (('train', 200), ('test', 100))})
  (folder / 'input.txt').write_text('a short text, and then the same again\n' * 40)


@pytest.fixture(scope='module')
def tree(tmp_path_factory: pytest.TempPathFactory, compile_cache: Path) -> Iterator[Path]:
  """A copy of the checkout's code, without records, with small downloads and data of its own."""
  path = tmp_path_factory.mktemp('readme') / 'clone'
  for name in ('model_lib', 'data', 'launch', 'experiments'):
    shutil.copytree(helpers.ROOT / name, path / name, ignore=shutil.ignore_patterns('results'))
  for name in (*PAGES, 'setup.cfg', 'pyproject.toml'):
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(helpers.ROOT / name, path / name)
  make_downloads(path / 'downloads')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('ACTNORM_DATA_DIR', str(path.parent / 'data'))
    yield path


def test_all_code_runs(tree):
  waiting: list[Block] = []
  found = blocks(read(README))
  for number, block in enumerate(found):
    where = f'README.md:{block.line}'
    if block.place:
      put(block, tree)
    elif block.language == 'python':
      waiting.append(block)
    elif block.language == 'bash':
      lines = [line for line in block.source.splitlines() if line not in SCRIPTS]
      if not lines:
        continue
      if not any(b.language == 'python' and not b.place for b in found[number:]):
        run_python(waiting, tree)
        waiting.clear()
      if all(line.startswith('python -m data.prepare ') for line in lines):
        prepare(lines, tree, where)
      else:
        for line in lines:
          run_command(line, tree, where)
  run_python(waiting, tree)
  # The commands did what the page says: two arms extended to 64 seeds, a record, a study.
  rows = (tree / 'runs/cpu/results.csv').read_text().splitlines()
  assert len([r for r in rows if ',fresh,' in r]) == 2 * 64
  record = tree / 'experiments/results/activation_search/mine'
  assert (record / 'table.md').is_file()
  assert '| `mine`' in (tree / 'README.md').read_text()
  # The copy has none of the records that the page of results shows.
  filled = (tree / RESULTS).read_text()
  assert filled.count('not recorded yet') == filled.count('<!-- results: ') >= 9
  assert '| ' not in filled
  table = (tree / 'runs/mine/table.md').read_text()
  assert 'stripes' in table and 'pre:mean_abs' in table
  # What the study does not have is left out, and nothing is written for what does not exist.
  assert 'Claims' not in table and 'cost' not in table
  with pytest.raises(AssertionError, match="(?s)ended with 2.*'mean_abz'; nearest: 'mean_abs'"):
    run_command('python -m experiments.mystudy --workdir=runs/no --config.norms=none,pre:mean_abz',
                tree, 'here')
  assert not (tree / 'runs/no').exists()


def test_every_block_is_of_a_known_kind():
  found = blocks(read(README))
  # Blocks without a language are no code.
  assert {block.language for block in found} == {'bash', 'python', ''}
  assert len([b for b in found if b.language == 'python']) >= 6
  assert [b for b in found if b.source.splitlines() == list(SCRIPTS)]


def test_the_page_of_results_has_no_code():
  assert not blocks(read(RESULTS))


def test_extensions_are_short():
  """What is added, a study included, takes at most 30 lines of code."""
  adding = read(README).partition('\n## Adding to it\n')[2].partition('\n## ')[0]
  found = [b for b in blocks(adding) if b.language == 'python']
  assert [b.place[2] if b.place else '' for b in found] == [
    'model_lib/activations/rectified.py', 'model_lib/normalization/layers.py',
    'model_lib/normalization/rows/token.py', '', 'experiments/mystudy.py']
  code = [[line for line in b.source.splitlines() if line.strip() and not line.startswith('# ')]
          for b in found]
  lengths = [len(code[0]), len(code[1]) + len(code[2]), len(code[3]), len(code[4])]
  assert max(lengths) <= 30, lengths


def test_tables_are_those_of_the_records():
  done = helpers.run_module('launch.readme', '--check')
  assert done.returncode == 0, done.stderr


def test_every_record_of_the_page_of_results_has_its_claims_in_readme():
  shown = re.findall(r'^<!-- results: (\S+)', read(RESULTS), re.MULTILINE)
  assert len(shown) >= 9
  assert re.findall(r'^<!-- claims: (\S+) -->$', read(README), re.MULTILINE) == shown


def test_both_pages_have_the_same_sections():
  """And README's each has a command and a link to the other's."""
  studies = read(README).partition('\n## Studies and their results\n')[2].partition('\n## ')[0]
  sections = re.split(r'^### ', studies, flags=re.MULTILINE)[1:-1]  # the last is for maintainers
  titles = [section.partition('\n')[0] for section in sections]
  assert re.findall(r'^## (.*)$', read(RESULTS), re.MULTILINE) == titles and len(titles) >= 7
  for section, title in zip(sections, titles, strict=True):
    assert f']({RESULTS}#{anchors(f"# {title}")[0]})' in section, title
    assert '\n```bash\npython -m experiments.' in section, title


def test_files_that_the_pages_name_exist():
  named = set(re.findall(r'`((?:launch|tests|experiments)/[\w/]+\.\w+|[A-Z_]+\.md)`',
                         '\n'.join(map(read, PAGES))))
  assert len(named) >= 5
  assert not [name for name in named if not (helpers.ROOT / name).exists()]


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
  assert read(page).count('](') >= 20
  assert not broken_links(page, helpers.ROOT)


def test_a_broken_link_is_found(tmp_path):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'top.md').write_text('# Top, and: more?\n```\n# no heading\n```\n## b_c 1 / d\n')
  (tmp_path / 'a/page.md').write_text(
      '# Here\n[1](../top.md) [2](../top.md#top-and-more) [3](#here) [4](../a) [5](https://x.y/z) '
      '[6](../top.md#b_c-1--d) [7](top.md) [8](../top.md#no-heading) [9](#there) [10](a/page.md)\n')
  assert broken_links('a/page.md', tmp_path) == [
    'top.md', '../top.md#no-heading', '#there', 'a/page.md']


def test_a_broken_block_is_found(tmp_path):
  with pytest.raises(AssertionError, match=r'(?s)README.md:10: .*"README.md", line 12.*boom'):
    run_python([Block('python', 10, 'x = 1\nraise ValueError("boom")\n')], tmp_path)
  with pytest.raises(AssertionError, match='README.md:3'):
    run_command('python -m nowhere', tmp_path, 'README.md:3')
  with pytest.raises(AssertionError, match='README.md:7'):
    put(Block('python', 7, '# at the end of nowhere.py\nx = 1\n'), tmp_path)
  with pytest.raises(AssertionError, match='no end'):
    blocks('text\n```bash\nls\n')
