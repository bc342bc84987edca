"""Every place under tests/ that can skip a test, and why; test_repository.py compares it with them.

A key is 'path::function', or 'path::<module>' for a decorator or a statement at the top level.
The tiers (`-m 'not slow and not benchmark'`) deselect tests, they do not skip them.
"""
SKIPS: dict[str, str] = {
  'tests/conftest.py::pytest_collection_modifyitems':
    'Tests marked `parity` compare with torch, transformers and mup, an optional extra, for '
    'Python 3.11 only; '
    'a line of the summary says whether they ran.',
  'tests/experiments/test_gallery.py::test_the_search_finds':
    'It runs the page in Chromium, which is no Python package; the other tests read its text.',
  'tests/launch/test_full_disk.py::test_a_small_disk':
    'It mounts a small tmpfs, which takes root; the other tests there meet a limit on file sizes.',
  'tests/launch/test_workdir.py::test_directory_that_cannot_be_written':
    'It needs a directory that takes no files even from root; /proc/self is one, on Linux only.',
  'tests/model_lib/test_checkpoint.py'
  '::test_a_full_file_system_is_one_line_and_the_process_goes_on_and_ends':
    'It mounts a small tmpfs, which takes root; the test before it meets a limit on file sizes.',
}
