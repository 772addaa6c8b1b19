"""The report of a run: one self-contained HTML file. `write_report(folder, out)`, or `plum report FOLDER`."""

from plum_jax.report.command import main, write_report

__all__ = ["main", "write_report"]
