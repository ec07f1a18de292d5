"""The real supervisor over stub workers, as a process of its own: `python stub_supervisor.py PLAN.json`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from proxy.supervisor import Helper, Plan, Refused, Supervisor
from proxy.telemetry.log import Log


def main() -> int:
    told = json.loads(Path(sys.argv[1]).read_text())
    told["helpers"] = tuple(Helper(**{**helper, "command": tuple(helper["command"])}) for helper in told["helpers"])
    told |= {"data_dir": Path(told["data_dir"]), "worker": tuple(told["worker"])}
    told["keeper"] = None if told["keeper"] is None else tuple(told["keeper"])
    try:
        return asyncio.run(Supervisor(Plan(**told), Log("supervisor")).run())
    except Refused as refused:
        print(f"refused: {refused}", file=sys.stderr)
        return 1


sys.exit(main())
