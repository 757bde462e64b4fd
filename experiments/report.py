"""One page with every result: figures and tables from the rows, and their origin.

    pip install -e '.[report]'
    python -m experiments.report [--results=experiments/results] [--out=report.html]

Reads the rows that experiments left and writes one HTML file that needs nothing else,
with the figures inside; `--figures=FOLDER` writes them as PNG files too. Sections
without rows say so. An experiment defines its own sections (`experiments.sections`);
here they are put in order.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import (
    cost,
    loading,
    loops,
    mahalanobis,
    maps,
    memory,
    pmeta_memory,
    scaling,
    speed,
)
from experiments import (
    accuracy,
    adapting,
    convergence,
    hypergrad_sections,
    learners,
    pmeta_rl,
    pmeta_sections,
    sama,
    unbiasedness_sections,
    variance,
)
from experiments.rows import read_rows
from experiments.sections import Row, Section
from tests.stress import fuzz_guided, fuzz_sections, kills, soak

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
SECTIONS: tuple[Section, ...] = (
    *unbiasedness_sections.SECTIONS[:3],
    *variance.SECTIONS,
    *unbiasedness_sections.SECTIONS[3:],  # error for the work
    *memory.SECTIONS,
    *maps.SECTIONS,
    *speed.SECTIONS,
    *loops.SECTIONS,
    *scaling.SECTIONS,
    *accuracy.SECTIONS,
    *hypergrad_sections.SECTIONS,
    *convergence.SECTIONS,
    *sama.SECTIONS[:2],
    *pmeta_memory.SECTIONS,
    *pmeta_sections.SECTIONS,
    *pmeta_rl.SECTIONS,
    *sama.SECTIONS[2:],  # hypergradients of growing networks
    *loading.SECTIONS,
    *learners.SECTIONS,
    *cost.SECTIONS,
    *mahalanobis.SECTIONS,
    *adapting.SECTIONS,
    *kills.SECTIONS,
    *soak.SECTIONS,
    *fuzz_sections.SECTIONS,
    *fuzz_guided.SECTIONS,
)
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;
padding:0 1rem;color:#222}table{border-collapse:collapse;font-size:13px;display:block;
overflow-x:auto}td,th{padding:.2rem .6rem;border-bottom:1px solid #ddd;text-align:left}
img{max-width:100%}code{background:#f3f3f3;padding:.1rem .3rem}.origin{color:#666}"""


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page, and the figures beside it if asked."""
    parser = argparse.ArgumentParser(description="one page from all rows")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    parser.add_argument("--figures", type=Path, help="folder for PNG files")
    arguments = parser.parse_args(argv)
    if not arguments.results.is_dir():
        parser.error(f"--results={arguments.results}: no such folder of .jsonl files")
    arguments.out.write_text(page(arguments.results, arguments.figures))
    print(arguments.out)


def page(results: Path, figures: Path | None = None) -> str:
    """Return the HTML, everything inside."""
    parts = [section_html(section, results, figures) for section in SECTIONS]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width">'
        f"<title>lite_jax: results</title><style>{STYLE}</style>"
        f"<h1>lite_jax: results</h1>{''.join(parts)}</html>\n"
    )


def section_html(section: Section, results: Path, figures: Path | None) -> str:
    """Return one section."""
    rows = read_rows(results, section.experiment)
    head = (
        f"<h2>{html.escape(section.title)}</h2><p>{html.escape(section.text)}</p>"
        f"<p><code>{html.escape(section.command)}</code></p>"
    )
    if not rows:
        return head + "<p>No rows yet.</p>"
    drawing = ""
    if section.draw:
        png = _png(section.draw(rows))
        if figures:
            figures.mkdir(parents=True, exist_ok=True)
            (figures / f"{_slug(section.title)}.png").write_bytes(png)
        source = base64.b64encode(png).decode()
        alt = html.escape(section.title)
        drawing = f'<img alt="{alt}" src="data:image/png;base64,{source}">'
    return head + drawing + _table(section.tabulate(rows)) + _origin(rows)


def _slug(title: str) -> str:
    return title.lower().replace(" ", "_").replace(":", "")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def _table(rows: list[Row]) -> str:
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    lines = (
        "".join(f"<td>{html.escape(str(row.get(name, '')))}</td>" for name in names)
        for row in rows
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><tr>{head}</tr>{body}</table>"


def _origin(rows: list[Row]) -> str:
    origins = sorted(
        {f"{r['device']}, {r.get('date', 'no date')}, jax {r['versions']['jax']}"
         for r in rows}
    )  # fmt: skip
    return f"<p class=origin>{html.escape('; '.join(origins))}</p>"


if __name__ == "__main__":
    main()
