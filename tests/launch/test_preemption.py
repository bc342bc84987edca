"""Signals that ask the process to leave, sent to real processes in every phase."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch.preemption import EXIT_PREEMPTED, SIGNALS, Preemption

ROOT = Path(__file__).parents[2]

# A call that holds up the main thread in C, releases the GIL, and that no signal ends.
PRELUDE = """
import hashlib, os, signal, sys, time
from launch.preemption import EXIT_PREEMPTED, Preemption

def call_in_c():
  hashlib.pbkdf2_hmac('sha256', b'a', b'b', 200_000_000)

def ready():
  print('ready', flush=True)
"""


@pytest.fixture
def start(tmp_path):
  """Starts a script after PRELUDE and waits until it says that it is ready."""
  started = []

  def run(script: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, '-c', PRELUDE + script, str(tmp_path)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    started.append(process)
    assert process.stdout.readline() == 'ready\n', process.stderr.read()
    return process

  yield run
  for process in started:
    process.kill()
    process.communicate()


def signalled(process: subprocess.Popen, *numbers: int, pause: float = 0.3) -> tuple[float, str]:
  """Sends the signals; returns the delay from the last one to the end, and what was said."""
  time.sleep(0.1)
  for i, number in enumerate(numbers):
    time.sleep(pause if i else 0)
    process.send_signal(number)
  began = time.monotonic()
  _, said = process.communicate(timeout=20)
  return time.monotonic() - began, said


@pytest.mark.parametrize('number', SIGNALS)
def test_busy_phase_leaves_at_once(start, tmp_path, number):
  process = start("""
preemption = Preemption().install()
preemption.register_flush(lambda: open(sys.argv[1] + '/flushed', 'w').close())
with preemption.busy('compile'):
  ready()
  call_in_c()
""")
  delay, said = signalled(process, number)
  assert process.returncode == EXIT_PREEMPTED
  assert delay < 1
  assert (tmp_path / 'flushed').exists()
  assert said.count('\n') == 1 and 'in compile' in said and number.name in said


def test_without_it_a_call_holds_the_signal_up(start):
  process = start("""
signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_PREEMPTED))
ready()
call_in_c()
""")
  time.sleep(0.3)  # A signal before the call begins would be handled.
  process.send_signal(signal.SIGTERM)
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(timeout=1)


def test_loop_saves_at_the_call_boundary(start, tmp_path):
  process = start("""
preemption = Preemption().install()
ready()
step = 0
while not preemption.requested:
  time.sleep(0.05)
  step += 1
preemption.acknowledge()
time.sleep(0.2)
open(sys.argv[1] + '/saved', 'w').write(str(step))
sys.exit(EXIT_PREEMPTED)
""")
  delay, said = signalled(process, signal.SIGTERM)
  assert process.returncode == EXIT_PREEMPTED
  assert delay < 1.5 and said == ''
  assert int((tmp_path / 'saved').read_text()) >= 1


def test_long_call_in_the_loop_is_left_after_the_deadline(start):
  assert Preemption()._deadline_s == 3.0
  process = start("""
preemption = Preemption(deadline_s=1.0).install()
ready()
call_in_c()
""")
  delay, said = signalled(process, signal.SIGTERM)
  assert process.returncode == EXIT_PREEMPTED
  assert 0.9 < delay < 2
  assert 'the running call took more than 1 s' in said


def test_acknowledged_save_may_take_longer_than_the_deadline(start, tmp_path):
  process = start("""
preemption = Preemption(deadline_s=0.3).install()
ready()
while not preemption.requested:
  time.sleep(0.01)
preemption.acknowledge()
time.sleep(1.0)
open(sys.argv[1] + '/saved', 'w').close()
sys.exit(EXIT_PREEMPTED)
""")
  delay, said = signalled(process, signal.SIGTERM)
  assert process.returncode == EXIT_PREEMPTED and said == ''
  assert delay > 0.9 and (tmp_path / 'saved').exists()


@pytest.mark.parametrize('phase', ["preemption.busy('evaluation')", 'contextlib.nullcontext()'])
def test_save_in_flight_is_awaited(start, tmp_path, phase):
  process = start(f"""
import contextlib, threading
preemption = Preemption(deadline_s=0.2).install()
in_flight = True
def save():
  global in_flight
  while not preemption.requested:
    time.sleep(0.01)
  time.sleep(0.8)
  open(sys.argv[1] + '/committed', 'w').close()
  in_flight = False
preemption.register_save(lambda: 1 / 0)
preemption.register_save(lambda: in_flight)
threading.Thread(target=save, daemon=True).start()
with {phase}:
  ready()
  call_in_c()
""")
  delay, _ = signalled(process, signal.SIGTERM)
  assert process.returncode == EXIT_PREEMPTED
  assert 0.7 < delay < 2 and (tmp_path / 'committed').exists()


def test_save_that_never_ends_is_given_up(start):
  process = start("""
preemption = Preemption(save_limit_s=0.6).install()
preemption.register_save(lambda: True)
with preemption.busy('evaluation'):
  ready()
  call_in_c()
""")
  delay, said = signalled(process, signal.SIGTERM)
  assert process.returncode == EXIT_PREEMPTED
  assert 0.5 < delay < 2 and 'the save did not end' in said


@pytest.mark.parametrize('numbers', [
    (signal.SIGTERM, signal.SIGTERM), (signal.SIGUSR1, signal.SIGINT)])
@pytest.mark.parametrize('steal', ['', 'signal.set_wakeup_fd(-1)'])
def test_second_signal_leaves_at_once(start, numbers, steal):
  process = start(f"""
preemption = Preemption(deadline_s=60).install()
preemption.register_save(lambda: True)
{steal}
ready()
while True:
  time.sleep(0.01)
""")
  time.sleep(0.1)
  process.send_signal(numbers[0])
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(timeout=0.5)
  delay, said = signalled(process, numbers[1])
  assert process.returncode == EXIT_PREEMPTED
  assert delay < 0.5 and 'second signal' in said


def test_one_request_sent_twice_is_one(start):
  process = start("""
preemption = Preemption(deadline_s=60).install()
ready()
while not preemption.requested:
  time.sleep(0.01)
preemption.acknowledge()
time.sleep(0.6)
sys.exit(7)
""")
  _, said = signalled(process, signal.SIGTERM, signal.SIGTERM, pause=0.02)
  assert process.returncode == 7 and said == ''


def test_late_handler_is_no_second_signal(start):
  process = start("""
preemption = Preemption(deadline_s=60).install()
ready()
hashlib.pbkdf2_hmac('sha256', b'a', b'b', 1_500_000)
while not preemption.requested:
  time.sleep(0.01)
time.sleep(0.3)
sys.exit(7)
""")
  delay, said = signalled(process, signal.SIGTERM)
  assert process.returncode == 7 and said == ''
  assert delay > 0.4


def test_seen_when_an_event_loop_takes_the_descriptor(start):
  process = start("""
preemption = Preemption().install()
signal.set_wakeup_fd(-1)
ready()
while not preemption.requested:
  time.sleep(0.01)
sys.exit(7)
""")
  delay, _ = signalled(process, signal.SIGTERM)
  assert process.returncode == 7 and delay < 1


def test_failing_and_hanging_hooks_do_not_hold_it_up(start, tmp_path):
  process = start("""
preemption = Preemption().install()
preemption.register_flush(lambda: 1 / 0)
preemption.register_flush(lambda: open(sys.argv[1] + '/flushed', 'w').close())
preemption.register_flush(lambda: time.sleep(30))
with preemption.busy('import'):
  ready()
  call_in_c()
""")
  delay, said = signalled(process, signal.SIGTERM)
  assert process.returncode == EXIT_PREEMPTED and delay < 4
  assert 'ZeroDivisionError' in said and (tmp_path / 'flushed').exists()


def test_signal_to_a_forked_child_does_not_reach_the_parent(start):
  process = start("""
preemption = Preemption().install()
child = os.fork()
if not child:
  time.sleep(30)
  os._exit(0)
time.sleep(0.1)
os.kill(child, signal.SIGTERM)
_, status = os.waitpid(child, 0)
time.sleep(0.2)
assert os.WTERMSIG(status) == signal.SIGTERM
assert not preemption.requested
ready()
sys.exit(7)
""")
  assert process.wait(timeout=10) == 7, process.stderr.read()


def test_full_disk_is_an_error_and_no_signal(start):
  process = start("""
import errno, resource
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
Preemption().install()
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
ready()
try:
  with open(sys.argv[1] + '/big', 'wb') as file:
    file.write(bytes(4096))
except OSError as error:
  sys.exit(7 if error.errno == errno.EFBIG else 8)
""")
  assert process.wait(timeout=10) == 7


def test_not_installed_and_not_in_the_main_thread():
  before = [signal.getsignal(number) for number in SIGNALS]
  preemption = Preemption()
  thread = threading.Thread(target=preemption.install)
  thread.start()
  thread.join()
  assert not preemption.requested
  with preemption.busy('nothing'):
    pass
  preemption.uninstall()
  assert [signal.getsignal(number) for number in SIGNALS] == before


def test_uninstall_puts_everything_back():
  before = [signal.getsignal(number) for number in SIGNALS]
  preemption = Preemption().install()
  assert [signal.getsignal(number) for number in SIGNALS] != before
  os.kill(os.getpid(), signal.SIGUSR1)
  deadline = time.monotonic() + 2
  while not preemption.requested and time.monotonic() < deadline:
    time.sleep(0.01)
  assert preemption.requested
  preemption.uninstall()
  assert [signal.getsignal(number) for number in SIGNALS] == before
  assert signal.set_wakeup_fd(-1) == -1 and not preemption.requested
