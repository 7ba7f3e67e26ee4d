"""Figures show the record's numbers: as many points as there are models, at their places, and nothing where nothing is."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import plotly.graph_objects as go
import pytest

from seed.records import StudyRecord
from seed.reporting import figures, wording
from seed.reporting.readings import choose_best_distilled, count_drops

# Loaded by path, so that it makes no difference from where and in which import mode the tests are run.
spec = importlib.util.spec_from_file_location("reporting_factory", Path(__file__).with_name("factory.py"))
