"""Leaving in time when the machine is taken away: SIGTERM, SIGINT, SIGUSR1.

A Python handler runs only when the main thread is in Python: not while it reads back a running
computation. So the kernel writes each signal to a pipe (`signal.set_wakeup_fd`) and a watcher
thread reads it, within some 20 ms in every phase. What happens then depends on the phase:

* In the training loop the main thread looks at `requested` after every call, calls `acknowledge`,
  saves, closes its files and exits with `EXIT_PREEMPTED`. When it has not acknowledged after
  `deadline_s`, the watcher waits for a save in flight, runs the flush hooks and ends the process.
* In a `busy` phase (import, compile, data preparation, evaluation) nothing would be lost but the
  phase itself: the watcher waits for a save in flight, runs the flush hooks and ends the process.
* A second signal ends the process at once.

The process ends by `os._exit`: an ordinary exit would wait for the computation. Install it before
the heavy imports:

    preemption = Preemption().install()
    with preemption.busy('import'):
      import jax
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

EXIT_PREEMPTED = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

_POLL_S = 0.02
# A scheduler may send one request twice, to the process and to its group.
_SAME_REQUEST_S = 0.2
_HOOKS_S = 2.0


class Preemption:
  """Watches for signals that ask the process to leave.

  Attributes:
    requested: whether the process is asked to leave. Always False when not installed.
  """

  def __init__(self, deadline_s: float = 3.0, save_limit_s: float = 600.0):
    """Makes it, without effect until `install`.

    Args:
      deadline_s: seconds that the loop has to acknowledge a request.
      save_limit_s: seconds after which the process ends even if a save does not.
    """
    self.requested = False
    self._deadline_s = deadline_s
    self._save_limit_s = save_limit_s
    self._busy: list[str] = []
    self._acknowledged = False
    self._saves: list[Callable[[], bool]] = []
    self._hooks: list[Callable[[], object]] = []
    self._exits: list[Callable[[], object]] = []
    self._pid = 0
    self._pipe = (-1, -1)
    self._old_handlers: dict[int, object] = {}
    self._old_wakeup = -1

  def install(self) -> Preemption:
    """Begins to watch. Outside of the main thread, where no handler can be set, does nothing."""
    if threading.current_thread() is not threading.main_thread() or self._pid:
      return self
    self._pid = os.getpid()
    self._pipe = os.pipe()
    os.set_blocking(self._pipe[1], False)
    self._old_wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
    for number in SIGNALS:
      self._old_handlers[number] = signal.signal(number, self._handle)
    if hasattr(signal, 'SIGXFSZ'):
      signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # The write then fails with an OSError.
    os.register_at_fork(after_in_child=self._forget)
    threading.Thread(target=self._watch, name='preemption', daemon=True).start()
    return self

  def uninstall(self) -> None:
    """Puts the former handlers back; for a process that goes on with something else."""
    if not self._pid:
      return
    self._restore()
    os.close(self._pipe[1])  # Ends the watcher, which closes the other end.
    self.requested = False

  @contextlib.contextmanager
  def busy(self, what: str) -> Iterator[None]:
    """A phase that may be cut off at any point without loss of training; may be nested.

    Look at `requested` before entering one from the loop: within it a request ends the process, and
    with it the steps since the last save.

    Args:
      what: the phase in a word or two, for the line that is printed on leaving.
    """
    self._busy.append(what)
    try:
      yield
    finally:
      self._busy.pop()

  def acknowledge(self) -> None:
    """Says that the loop has seen the request and leaves by itself: saves, closes, exits."""
    self._acknowledged = True

  def register_save(self, in_flight: Callable[[], bool]) -> None:
    """Registers a function that says whether a save is being committed; it must not block."""
    self._saves.append(in_flight)

  def register_flush(self, hook: Callable[[], object]) -> None:
    """Registers what is to be done right before the watcher ends the process, such as a flush.

    Hooks run in a thread of their own, in the order of registration, and together get 2 s. The
    main thread runs on meanwhile, so a hook must not take a lock the main thread may hold for long.
    """
    self._hooks.append(hook)

  def register_exit(self, hook: Callable[[], object]) -> None:
    """Registers what may only be done when nothing is written any more, such as an unlock.

    It is called after the flush hooks, immediately before the process ends.
    """
    self._exits.append(hook)

  def _handle(self, number: int, frame: object) -> None:
    # The second way for a signal to arrive: an event loop in the main thread (uvloop, which Orbax
    # uses) takes the wake-up descriptor for itself. Marked, so that it is not counted twice.
    with contextlib.suppress(OSError):
      os.write(self._pipe[1], bytes([number | 0x80]))

  def _watch(self) -> None:
    reader = self._pipe[0]
    wanted = {int(number) for number in SIGNALS}
    while True:
      received = os.read(reader, 64)
      if not received:
        os.close(reader)
        return
      if any((byte & 0x7F) in wanted for byte in received):
        break
    began = time.monotonic()
    self.requested = True
    name = next(signal.Signals(byte & 0x7F).name for byte in received if (byte & 0x7F) in wanted)
    # One signal may arrive both ways, the handler's mark as late as the running call is long. So
    # the two ways are counted apart: two requests are two by the same way.
    first = {byte >= 0x80: began for byte in received if (byte & 0x7F) in wanted}
    os.set_blocking(reader, False)
    while True:
      time.sleep(_POLL_S)
      now = time.monotonic()
      waited = now - began
      try:
        again = os.read(reader, 64)
        if not again:
          os.close(reader)
          return
      except BlockingIOError:
        again = b''
      for byte in again:
        if (byte & 0x7F) in wanted:
          if now - first.setdefault(byte >= 0x80, now) > _SAME_REQUEST_S:
            self._say(f'second signal after {name}: leaving at once')
            os._exit(EXIT_PREEMPTED)
      if waited > self._save_limit_s:
        self._leave(name, 'the save did not end')
      if self._in_flight() or self._acknowledged:
        continue
      phase = self._busy[-1:]  # A copy: the main thread may leave the phase meanwhile.
      if phase:
        self._leave(name, f'in {phase[0]}')
      if waited > self._deadline_s:
        self._leave(name, f'the running call took more than {self._deadline_s:g} s')

  def _in_flight(self) -> bool:
    for in_flight in self._saves:
      with contextlib.suppress(Exception):  # One that is closed must not hide the others.
        if in_flight():
          return True
    return False

  def _leave(self, name: str, where: str) -> None:
    def flush() -> None:
      for hook in (*self._hooks, sys.stdout.flush, sys.stderr.flush):
        try:
          hook()
        except Exception as error:
          self._say(f'{type(error).__name__} while leaving: {error}')

    flusher = threading.Thread(target=flush, daemon=True)
    with contextlib.suppress(RuntimeError):  # No new thread once the interpreter shuts down.
      flusher.start()
      flusher.join(_HOOKS_S)
    for last in self._exits:
      with contextlib.suppress(Exception):
        last()
    self._say(
        f'{name}: left ({where}); run the same command again to go on from the last checkpoint')
    os._exit(EXIT_PREEMPTED)

  def _say(self, text: str) -> None:
    # Not through sys.stderr: the main thread may be holding its lock.
    with contextlib.suppress(OSError):
      os.write(2, f'preempted: {" ".join(text.split())}\n'.encode())

  def _restore(self) -> None:
    signal.set_wakeup_fd(self._old_wakeup)
    for number, handler in self._old_handlers.items():
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    self._old_handlers.clear()
    self._pid = 0

  def _forget(self) -> None:
    """In a forked child, which shares the pipe: its signals are not the parent's."""
    if self._pid:
      self._old_wakeup = -1
      self._restore()
