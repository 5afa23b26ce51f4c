"""What tests of several processes have in common: starting runs of a tiny encoder, waiting for steps, and finding what is left of them."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from dsengine.engine.log import read_metrics

HERE = Path(__file__).parent
TRAIN = [sys.executable, "-P", "-m", "dsengine.cli", "train"]


def settings(corpus: Path, out: Path, *extra: str, steps: int | None = None) -> list[str]:
    """Arguments of a run that logs every step; without `steps` it takes for ever."""
    length = ["--epochs", "100000", *(() if steps is None else ("--set", f"train.max_steps={steps}"))]
    return ["--corpus", str(corpus), "--out", str(out), "--gpus", "0", "--encoder", "workers.tiny_encoder", "--batch-size", "16", "--set", "train.bn_group=4",
            "--set", "train.log_steps=1", "--set", "train.heldout_samples=8", "--set", "data.size=16", "--set", "data.threads=1", *length, *extra]


def environment(**more: object) -> dict[str, str]:
    """That of a process which can find the tiny encoder."""
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **{key: str(value) for key, value in more.items()}}


def start(command: list[str], **more: object) -> subprocess.Popen:
    """A process in a session of its own."""
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**more), start_new_session=True)


def reached(out: Path) -> int:
    """The last step in the metrics."""
    return max((record["step"] for record in read_metrics(out)), default=0)


def wait_for_step(process: subprocess.Popen, out: Path, step: int) -> None:
    """Until `step` is in the metrics."""
    deadline = time.time() + 180
    while reached(out) < step:
        assert process.poll() is None and time.time() < deadline, process.communicate()[1]
        time.sleep(0.02)


def naming(text: object) -> dict[int, str]:
    """{process: command line} of those whose command line holds `text`."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(text) in line and int(entry.name) != os.getpid():
            found[int(entry.name)] = line
    return found


def rank_pids(out: Path, launcher: int) -> list[int]:
    """Processes of the ranks of a run, in rank order."""
    pids = []
    for pid, line in naming(out).items():
        if pid != launcher and "engine.launch" in line:
            variables = dict(item.split("=", 1) for item in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in item)
            pids.append((int(variables["RANK"]), pid))
    return [pid for _, pid in sorted(pids)]


def gone(out: Path, timeout_s: float = 20) -> bool:
    """Whether no process names the run any more, soon."""
    deadline = time.time() + timeout_s
    while naming(out) and time.time() < deadline:
        time.sleep(0.05)
    return not naming(out)


def shared_memory() -> set[str]:
    """Names in /dev/shm."""
    return set(os.listdir("/dev/shm"))


def is_free(port: int) -> bool:
    """Whether nobody listens on `port`."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("localhost", port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """One that is free now."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def listening(pids: list[int]) -> set[int]:
    """Ports on which any of these processes listens."""
    inodes = set()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(os.readlink(fd))
            except OSError:
                continue
    ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            part = line.split()
            if part[3] == "0A" and f"socket:[{part[9]}]" in inodes:
                ports.add(int(part[1].rpartition(":")[2], 16))
    return ports
