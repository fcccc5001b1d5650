"""`longvit doctor`"""

from __future__ import annotations

import json
from dataclasses import asdict

from longvit.cli.options import AsJson


def doctor(*, as_json: AsJson = False) -> int:
    """Check the installation, with a self-test.

    Lists versions, devices, attention back ends and the reason for the choice, readers and their formats, free disk.

    The self-test runs a small model and dilated attention on the chosen device and compares the outputs with stored
    numbers. It takes about two seconds. Exit code 1 if a check fails.

    **Examples**

    ```
    longvit doctor
    longvit doctor --json > doctor.json
    ```
    """
    from longvit.doctor import examine

    findings = examine()
    wrong = [finding for finding in findings if finding.verdict == "wrong"]
    if as_json:
        print(json.dumps({"ok": not wrong, "findings": [asdict(finding) for finding in findings]}, indent=1))
        return 1 if wrong else 0
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    section = ""
    for finding in findings:
        heading = finding.section if finding.section != section else ""
        section = finding.section
        style = {"ok": "green", "note": "yellow", "wrong": "bold red"}[finding.verdict]
        table.add_row(heading, Text(finding.verdict, style=style), finding.name, Text(finding.text))
    Console(highlight=False).print(table)
    print(f"{len(wrong)} thing{'s are' if len(wrong) > 1 else ' is'} wrong" if wrong else "all is well")
    return 1 if wrong else 0
