"""The command line of every study: parse, compare with the workdir, run or show, exit code.

Exit codes: 0 done; 2 a mistake in usage, config or data, in one line; 3 no run
survived; 75 preempted (run the same command again); 1 is a fault of ours, with
its traceback.
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Sequence

from data.errors import DataError
from launch import environment
from launch.preemption import EXIT_PREEMPTED, Preemption
from launch.study import config as config_lib
from launch.study import flags
from launch.study import records
from launch.study import shown
from launch.study.records import Record
from launch.study.study import Study
from launch.study.workdir import Workdir
from model_lib.errors import UserError

EXIT_DONE, EXIT_USAGE, EXIT_NOTHING_SURVIVED = 0, 2, 3
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def main(study: Study, argv: Sequence[str] | None = None) -> None:
  """Runs a study from its command line and exits the process."""
  # Before everything that takes time, so that no signal finds the default handler.
  preemption = Preemption().install()
  try:
    code = _main(study, list(sys.argv if argv is None else argv), preemption)
  except (UserError, DataError) as e:
    print(f'{study.name}: {e}', file=sys.stderr)
    code = EXIT_USAGE
  except OSError as e:
    if e.errno not in _FULL:
      raise
    print(f'{study.name}: {e.filename or "a file of the run"} cannot be written: {e.strerror}; '
          'make room and run the same command again', file=sys.stderr)
    code = EXIT_USAGE
  sys.stdout.flush()
  sys.exit(code)


def _main(study: Study, argv: list[str], preemption: Preemption) -> int:
  parsed = flags.parse(argv, study.name, study.config, study.presets)
  environment.check_editable(sys.modules[study.config.__module__].__file__)
  config = config_lib.to_dict(parsed.config)
  if parsed.list_runs or parsed.dry_run:
    environment.fix_threads(None)
    with preemption.busy('import'):
      from launch.study import preview
    print(preview.runs(study, parsed) if parsed.list_runs else preview.dry_run(study, parsed))
    return EXIT_DONE
  workdir = Workdir(parsed.workdir)
  record, seen = None, b''
  if workdir.exists(study.name):
    seen = workdir.config.read_bytes()
    record = Record.read(workdir)
    extends = records.check_change(record.configs[-1], config, parsed.extend, study.extendable,
                                   workdir.path)
    if extends:
      record.configs.append(config)
    elif workdir.read_status().get('state') == 'done' and shown.text_path(workdir).exists():
      print(shown.show(workdir))
      return EXIT_DONE
    record.configs[-1]['io'] = config['io']
  elif parsed.extend:  # A directory without config.json has not begun: there is nothing to add to.
    raise UserError(f'{parsed.workdir} holds no run to extend; drop --extend to start one')
  return _run(study, parsed.config, workdir, record, seen, parsed.preset, preemption)


def _run(study: Study, config, workdir: Workdir, record: Record | None, seen: bytes, preset: str,
         preemption: Preemption) -> int:
  """Loads the heavy libraries and runs the study under the workdir's lock.

  `seen` is config.json as `record` was read from it, empty for a new workdir.
  """
  with preemption.busy('start'):
    threads = environment.fix_threads(record.engine.get('cpu_threads') if record else None)
    from launch.study import session
    # Everything that the user may have got wrong is found before anything is written.
    opened = session.open_data(study, config, record, workdir)
    workdir.create()
  with workdir.locked(session.say):
    # For the exits that the watcher takes; the ordinary one below says the same. Without its
    # config.json a directory with a status.json is nobody's, and the next start would refuse it.
    preemption.register_flush(
        lambda: workdir.config.exists() and workdir.write_status('preempted'))
    preemption.register_exit(workdir.unlock)
    if (workdir.config.read_bytes() if workdir.config.exists() else b'') != seen:
      raise UserError(f'{workdir.path}: another process changed this run while this one started; '
                      'run the same command again')
    try:
      if record is None:
        record = Record(study.name, preset, [config_lib.to_dict(config)])
      session.run(study, record, workdir, preemption, opened, threads)
    except session.Preempted:
      workdir.write_status('preempted')
      session.say('preempted: saved; run the same command again to go on')
      return EXIT_PREEMPTED
    except session.NothingSurvived as e:
      workdir.write_status('failed')
      print(f'{study.name}: {e}', file=sys.stderr)
      return EXIT_NOTHING_SURVIVED
    except Exception:
      # The first error is the one to tell, also where the disk takes no status any more.
      with contextlib.suppress(UserError):
        if workdir.config.exists():
          workdir.write_status('failed')
      raise
  print(shown.show(workdir))
  return EXIT_DONE
