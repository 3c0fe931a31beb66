"""Run rows of the matrix, one after the other: `python -m support.features ROW... --lines FILE`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from support.features.columns import Column
from support.features.rows import row_named
from support.features.servers import Rows


def main() -> int:
    """Append a JSON line to the file for each row that ends; return 1 when a cell of any row is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row", nargs="+")
    parser.add_argument("--lines", type=Path, help="where a line for each row goes")
    parser.add_argument("--logs", type=Path, default=Path(".cache/features"), help="folder of the servers' logs")
    parser.add_argument("--column", action="append", default=[], type=Column)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no further row after these")
    parser.add_argument("--new-interpreters", action="store_true", help="start every process as in production")
    chosen = parser.parse_args()
    end_s, broken = time.monotonic() + 60 * chosen.minutes, False
    with Rows(chosen.logs, forked=not chosen.new_interpreters, say=lambda text: print(text, flush=True)) as rows:
        for name in chosen.row:
            if (began_s := time.monotonic()) > end_s:
                break
            record = rows.run(row_named(name), chosen.column)
            for one in record.broken:
                print(f"broken: {name}: {one}", flush=True)
            broken = broken or bool(record.broken)
            if chosen.lines is not None:
                line = {
                    "item": name,
                    "outcome": "failed" if record.broken else "passed",
                    "seconds": time.monotonic() - began_s,
                    "detail": json.dumps(record.document()),
                }
                with chosen.lines.open("a") as lines:
                    lines.write(json.dumps(line) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
