# mypy: ignore-errors
"""What the scripts of the other providers' SDKs share: a task from stdin, checks by name, one JSON line for each."""

import json
import sys
import traceback

TASK = json.load(sys.stdin)
CHECKS = {}


def check(function):
    """Make a function a check under its own name."""
    CHECKS[function.__name__] = function
    return function


class Run:
    """One check: the headers by which its request is found, and what is handed back about it."""

    def __init__(self, name):
        self.trace = {"traceparent": f"00-{TASK['traces'][name]}-00f067aa0ba902b7-01"}
        self.detail = {}

    def headers(self, scenario=None):
        return self.trace | ({"x-simulator-scenario": scenario} if scenario else {})

    def used(self, given, output, cached=0, reasoning=0):
        """Note the usage as the SDK shows it, in the GenAI conventions' terms."""
        self.detail["usage"] = {"input": given, "output": output, "cache_read": cached, "reasoning": reasoning}


def main():
    """Run every check that the task names."""
    for name in TASK["traces"]:
        run = Run(name)
        try:
            CHECKS[name](run)
        except Exception:  # noqa: BLE001 every check reports, whatever happens
            answer = {"name": name, "ok": False, "detail": run.detail, "error": traceback.format_exc(limit=-6)}
        else:
            answer = {"name": name, "ok": True, "detail": run.detail}
        print(json.dumps(answer), flush=True)  # noqa: T201 the report


def raised(kind, call):
    """The error of that kind that `call` raises."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")
