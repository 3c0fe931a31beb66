"""Run one row, or print the section of the failure model: `python -m support.features ROW --json FILE`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from support.features.columns import Column
from support.features.rows import row_named
from support.features.runner import run_row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row")
    parser.add_argument("--json", type=Path, help="where the record of the row goes")
    parser.add_argument("--logs", type=Path, default=Path(".cache/features"), help="folder of the servers' logs")
    parser.add_argument("--column", action="append", default=[], type=Column)
    chosen = parser.parse_args()
    record = run_row(row_named(chosen.row), chosen.logs, chosen.column)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(record.document()))
    for broken in record.broken:
        print(f"broken: {broken}")
    return 1 if record.broken else 0


if __name__ == "__main__":
    sys.exit(main())
