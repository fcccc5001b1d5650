"""Report of a site check: the sentence, the predictions of the site, and every site as a row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from longvit.plots.sites import site_prediction_plot
from longvit.report.page import MetricCard, Report, Row, Section, Table, number, write_report
from longvit.report.sections import saved_plot

if TYPE_CHECKING:
    from longvit.sites.check import SiteCheck

HTML, PNG = "site_check.html", "site_check.png"
_METHOD = {"knn": "k-NN", "linear": "linear probe"}


def site_check_report(check: SiteCheck, out_dir: str | Path) -> Path:
    """Writes `site_check.html` and `site_check.png`."""
    out_dir = Path(out_dir)
    shown = [(_METHOD[one.method], one.accuracy, one.low, one.high, one.chance) for one in check.predictions]
    site_prediction_plot(shown, out_dir / PNG)
    cards = [
        MetricCard(
            f"site by {_METHOD[one.method]}", f"{one.accuracy:.2f}",
            f"balanced accuracy, 95 % interval {one.low:.2f}–{one.high:.2f}; chance {one.chance:.2f}, p {one.p:.3g}",
        )
        for one in check.predictions
    ]  # fmt: skip
    if check.association is not None:
        linked = check.association
        cards.append(MetricCard("site and label", f"{linked.v:.2f}", f"Cramér's V, p {linked.p:.3g}"))
    if check.robustness is not None:
        index = check.robustness
        cards.append(MetricCard("robustness index", f"{index.value:.2f}", f"{index.k} neighbours; 1: label, 0: site"))
    permuted = "within labels" if check.within_label else "freely"
    report = Report(
        title="Site check",
        lead=(check.sentence, f"{check.kind} of {check.patients:,} patients at {len(check.sites)} sites."),
        notes=list(check.notes),
        cards=cards,
        sections=[
            Section(
                "Is the site in the vectors?",
                text=(f"Prediction of the site of patients that were left out. Chance: sites permuted {permuted}.",),
                plots=(saved_plot("Prediction of the site", out_dir / PNG, max_px=620),),
            ),
            _sites_section(check),
        ],
    )
    return write_report(report, out_dir / HTML)


def _sites_section(check: SiteCheck) -> Section:
    labels = sorted({label for site in check.sites for label in site.labels})
    metrics = [name for name in ("auc", "balanced_accuracy") if any(name in site.metrics for site in check.sites)]
    rows = [
        Row(
            [
                site.site,
                f"{site.slides:,}",
                f"{site.patients:,}",
                *(f"{site.labels.get(label, 0):,}" for label in labels),
                *(number(site.metrics.get(name)) for name in metrics),
            ]
        )
        for site in check.sites
    ]
    columns = ("site", "slides", "patients", *(f"label {label}" for label in labels), *metrics)
    numbers = frozenset(range(1, len(columns)))
    return Section("Sites", tables=(Table(columns, rows, numbers, first_stays=True),))
