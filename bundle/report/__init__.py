"""The report of a run: one self-contained HTML page."""

try:
    import jinja2  # noqa: F401
    import matplotlib  # noqa: F401
    import PIL  # noqa: F401
except ImportError as error:
    raise ImportError(f"the report needs {error.name}, which is not installed: pip install {error.name}") from error

from bundle.report.entry import ReportEntry, header_facts
from bundle.report.page import Section, section, write_report

__all__ = ["ReportEntry", "Section", "header_facts", "section", "write_report"]
