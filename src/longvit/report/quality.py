"""Report of slide quality: counts, the worst slides as thumbnails, all slides as a table; and the section of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvit.report.labels import counted
from longvit.report.page import MetricCard, Report, ReportImage, Row, Section, Table, number, write_report

if TYPE_CHECKING:
    from longvit.data.qc_table import NamedSlide, QualityCheck

WORST = 20
MAX_ROWS = 500
QC_HTML = "qc.html"
_SHARES = {"blurred_share": "out of focus", "fold_share": "folds", "bubble_share": "bubbles", "pen_share": "pen"}
_LEGEND = "Outlines: tissue green, folds orange, bubbles blue, pen magenta."


def quality_report(rows: Sequence[Mapping[str, Any]], thumbnails: Mapping[str, Path], out_dir: str | Path) -> Path:
    """Writes `qc.html` for the rows of qc.csv; `thumbnails`: slide_id -> JPEG."""
    count = {grade: sum(row["qc"] == grade for row in rows) for grade in ("pass", "warn", "fail")}
    unread = [row for row in rows if "badness" not in row]
    checked = sorted((row for row in rows if "badness" in row), key=lambda row: (-row["badness"], row["slide_id"]))
    notes = []
    if unread:
        notes.append(f"{counted(len(unread), 'slide')} could not be checked; see below.")
    report = Report(
        title=f"Quality of {counted(len(rows), 'slide')}",
        lead=(
            "Focus, folds, air bubbles and pen marks by classical measures. A pass says that none of them found "
            "anything, not that the slide is good; look before you exclude.",
        ),
        notes=notes,
        cards=[
            MetricCard("pass", f"{count['pass']:,}", "nothing found"),
            MetricCard("warn", f"{count['warn']:,}", "worth a look"),
            MetricCard("fail", f"{count['fail']:,}", "left out by --exclude-qc qc.csv"),
        ],
        sections=[
            *([_unread_section(unread)] if unread else []),
            *_worst_section(checked, thumbnails),
            _table_section(checked),
            _measures_section(),
        ],
    )
    return write_report(report, Path(out_dir) / QC_HTML)


def run_sections(check: QualityCheck | None, slides: Iterable[NamedSlide]) -> list[Section]:
    """Section of a run's report: quality of its `slides`, and those that it left out; none without a qc.csv."""
    if check is None:
        return []
    qc, excluded, used = check.qc, check.excluded, {slide.slide_id for slide in slides}
    warned = [qc[name] for name in sorted(used) if name in qc and qc[name].grade != "pass"]
    unknown = sum(name not in qc for name in used)
    text = (
        f"{counted(len(excluded), 'slide')} failed the quality check and {'was' if len(excluded) == 1 else 'were'} "
        f"left out. Of the {counted(len(used), 'slide')} used, {len(warned)} {'has' if len(warned) == 1 else 'have'} a "
        f"warning and {unknown} {'was' if unknown == 1 else 'were'} not checked."
    )
    listed = [*((quality, "left out") for quality in excluded), *((quality, "used") for quality in warned)]
    rows = [
        Row([quality.slide_id, use, quality.grade, quality.reason], "other" if use == "left out" else "")
        for quality, use in listed[:MAX_ROWS]
    ]
    tables = (Table(("slide", "", "qc", "reason"), rows, first_stays=True),) if rows else ()
    return [Section("Quality of the slides", text=(text,), tables=tables)]


def _unread_section(rows: Sequence[Mapping[str, Any]]) -> Section:
    table = Table(("slide", "reason"), [Row([row["slide_id"], row["reason"]], "wrong") for row in rows[:MAX_ROWS]])
    return Section("Not checked", text=(f"{counted(len(rows), 'slide')}; each counts as a fail.",), tables=(table,))


def _worst_section(rows: Sequence[Mapping[str, Any]], thumbnails: Mapping[str, Path]) -> list[Section]:
    gallery = []
    for row in rows[:WORST]:
        with suppress(OSError, KeyError):  # removed since
            data = thumbnails[row["slide_id"]].read_bytes()
            caption = f"{row['qc']}: {row['reason']}" if row["reason"] else row["qc"]
            gallery.append(ReportImage(row["slide_id"], data, caption))
    if not gallery:
        return []
    title = "Worst slides" if len(rows) > 1 else "The slide"
    first = f"The {len(gallery)} worst of {len(rows):,}, worst first. " if len(rows) > 1 else ""
    return [Section(title, text=(first + _LEGEND,), gallery=gallery)]


def _table_section(rows: Sequence[Mapping[str, Any]]) -> Section:
    columns = ("slide", "qc", "reason", "size in px", "µm/px", "tissue mm²", "focus", *_SHARES.values(), "s")
    shown = [
        Row(
            [
                row["slide_id"],
                row["qc"],
                row["reason"].replace(" ", "\u00a0").replace(";\u00a0", "; "),  # a line per reason
                f"{row['width_px']:,} × {row['height_px']:,}",
                f"{row['mpp']:.3g} ({row['mpp_source']})",
                f"{row['tissue_mm2']:.2f}",
                number(row["focus"] if row["focus"] != "" else None),
                *(f"{100 * row[name]:.0f} %" for name in _SHARES),
                f"{row['seconds']:.1f}",
            ],
            "wrong" if row["qc"] == "fail" else "",
        )
        for row in rows[:MAX_ROWS]
    ]
    text = "Worst first. Also in qc.csv, with more columns."
    if len(rows) > MAX_ROWS:
        text += f" The first {MAX_ROWS} of {len(rows):,} are shown."
    numbers = frozenset(range(5, len(columns)))
    return Section("All slides", text=(text,), tables=(Table(columns, shown, numbers, first_stays=True),))


def _measures_section() -> Section:
    from longvit.quality import focus, verdict

    points = (
        f"Focus: up to {focus.PROBES} probes of {focus.PROBE_PX} px at {focus.MPP:g} µm/px. Energy of the finest "
        f"detail relative to detail one octave coarser; below {focus.SHARP:g} octaves a probe is out of focus.",
        "Folds: bands that are denser than the tissue on both sides, at least 320 µm long.",
        "Bubbles: smooth areas inside a closed grey rim, at least 80 µm across.",
        "Pen: areas of at least 0.02 mm² whose optical densities are those of blue, green, red or black ink.",
        f"Warning: an artefact on {100 * verdict.WARN_SHARE:.0f} % of the tissue, {100 * verdict.WARN_BLURRED:.0f} % "
        f"of the probes out of focus, or an unreadable tile.",
        f"Fail: an artefact on {100 * verdict.FAIL_SHARE:.0f} % of the tissue, {100 * verdict.FAIL_BLURRED:.0f} % of "
        f"the probes out of focus, less than {verdict.LEAST_TISSUE_MM2:g} mm² of tissue, or no reading at all.",
    )
    return Section("Measures and limits", points=points, folded="Show measures and limits")
