"""Forks `dsengine ARGV` from a process that has imported everything, so that a hundred starts cost no hundred imports of torch.

Reads one JSON object a line from standard input and answers each with one, when the command has ended:
{"argv", "log": file for what it prints, "signal": number, "after_s": when to send it, "lines": [file, number of lines that it must have by then], "arm": [folder, number of a call, 0 before / 1 in the middle of /
2 after / 3 never], "fsize": largest file in bytes} -> {"code": exit code, negative for a signal,
"seconds", "fault": the call at which it ended, or every one}. Started with LD_PRELOAD of faults.c, whose path is the only argument.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for the encoder workers.tiny_encoder


def _preload() -> None:
    """Everything a run imports, nothing that starts a thread."""
    import matplotlib.backends.backend_agg  # noqa: F401
    import torch._dynamo  # noqa: F401
    import workers.tiny_encoder  # noqa: F401

    import dsengine.engine.launch  # noqa: F401
    import dsengine.methods.csf  # noqa: F401
    import dsengine.study.report.write  # noqa: F401


def _become(job: dict, faults: ctypes.CDLL, fault_log: int) -> None:
    """The rest of this forked process's life."""
    from dsengine import cli

    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 70
    try:
        if "fsize" in job:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["fsize"], resource.RLIM_INFINITY))
        if "arm" in job:
            folder, number, when = job["arm"]
            faults.faults_arm(folder.encode(), number, when, fault_log)
        code = cli.main(job["argv"])
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _strike(job: dict, pid: int, over: threading.Event) -> None:
    """Send the signal when it is due, unless the process has ended."""
    if "lines" in job:
        path, number = Path(job["lines"][0]), job["lines"][1]
        while not over.is_set() and not (path.exists() and path.read_bytes().count(b"\n") >= number):
            time.sleep(0.002)
    if not over.wait(job.get("after_s", 0)):
        os.kill(pid, job["signal"])


def _run(job: dict, faults: ctypes.CDLL) -> dict:
    with tempfile.TemporaryFile() as fault_log:
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _become(job, faults, fault_log.fileno())
        over = threading.Event()
        striker = threading.Thread(target=_strike, args=(job, pid, over))
        if "signal" in job:
            striker.start()
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # still a zombie: its number cannot be another's when the signal comes
        over.set()
        if "signal" in job:
            striker.join()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        fault_log.seek(0)
        return {"code": code, "seconds": time.monotonic() - began, "fault": fault_log.read().decode()}


def main() -> None:
    """Serve until standard input ends."""
    faults = ctypes.CDLL(sys.argv[1])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _preload()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line), faults)), flush=True)


if __name__ == "__main__":
    main()
