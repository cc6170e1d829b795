"""The main job from end to end, and the page, figures and numbers that it writes."""

from em_interp.report.main_job import study
from em_interp.report.page import write_report
from em_interp.report.results import Results, Source, as_json
from em_interp.report.settings import Design, Judging, Materials, Settings

__all__ = ["Design", "Judging", "Materials", "Results", "Settings", "Source", "as_json", "study", "write_report"]
