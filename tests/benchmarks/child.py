"""Call one function of `clients` or `bare` in this process, and print its answer and its cost.

usage: child.py MODULE.FUNCTION < JSON-LIST-OF-ARGUMENTS
"""

import importlib
import json
import sys
import time

from processes import peak_mib

if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(".")
    answer = getattr(importlib.import_module(module), name)(*json.load(sys.stdin))
    print(json.dumps({**answer, "cpu_s": time.process_time(), "peak_mib": peak_mib("self")}))
