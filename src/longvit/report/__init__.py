"""Runs as one HTML file that stands alone."""

from longvit.report.crossval import crossval_report
from longvit.report.finetuning import finetune_content, finetune_report
from longvit.report.page import MetricCard, Report, ReportImage, Row, Section, Table, write_report
from longvit.report.pretraining import pretrain_report

__all__ = [
    "MetricCard",
    "Report",
    "ReportImage",
    "Row",
    "Section",
    "Table",
    "crossval_report",
    "finetune_content",
    "finetune_report",
    "pretrain_report",
    "write_report",
]
