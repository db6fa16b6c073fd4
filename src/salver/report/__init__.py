"""What a person reads: tables for the terminal, and one self-contained HTML page."""

from __future__ import annotations

from salver.report.page import render_page
from salver.report.terminal import candidate_table, print_terminal, render_terminal

__all__ = ["candidate_table", "print_terminal", "render_page", "render_terminal"]
