"""The section of the page about the crossing: how far each output is from the original's."""

from __future__ import annotations

from html import escape

from salver.evaluation.parity import OutputParity, ParityCertificate
from salver.report import words

_HEADS = ("output", "largest", "mean", "largest, relative", "mean, relative", "same label", "units in the last place")


def draw_parity(certificate: ParityCertificate) -> str:
    """A table of the outputs, and what stands behind it."""
    heads = "".join(f"<th{_align(i)}>{head}</th>" for i, head in enumerate(_HEADS))
    rows = "".join(_row(output) for output in certificate.outputs)
    told = "".join(f"<p>{escape(line)}</p>" for line in words.tell_parity(certificate))
    return (
        f'<h2>The same answers as the original</h2><div class="card">{told}<div class="scroll"><table>'
        f"<tr>{heads}</tr>{rows}</table></div></div>"
    )


def _row(output: OutputParity) -> str:
    numbers = [f"{value:.2g}" for value in (output.max_abs, output.mean_abs, output.max_rel, output.mean_rel)]
    cells = [output.name, *numbers, words.show_share(output.label_agreement)]
    cells.append(words.show_ulp_bins(output.ulps) or words.DASH)
    return "<tr>" + "".join(f"<td{_align(i)}>{escape(cell)}</td>" for i, cell in enumerate(cells)) + "</tr>"


def _align(column: int) -> str:
    return ' class="n"' if 0 < column < len(_HEADS) - 1 else ""
