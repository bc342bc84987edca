"""The frame of a study: command line, workdir, claims, tables. Imports nothing heavy.

A launch file defines a `Study` and ends with

    if __name__ == '__main__':
      main(STUDY)

A finished run is opened with `load_run(workdir, member)`.
"""

from launch.study.config import EngineConfig, IoConfig, field
from launch.study.load import load_run
from launch.study.main import main
from launch.study.request import DataRequest
from launch.study.study import Given, Measurement, Report, Run, Study

__all__ = ['DataRequest', 'EngineConfig', 'Given', 'IoConfig', 'Measurement', 'Report', 'Run',
           'Study', 'field', 'load_run', 'main']
