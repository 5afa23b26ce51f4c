"""What SLURM's srun tells the processes it starts, in the words that torch.distributed understands."""

import os
import re
from collections.abc import Mapping, MutableMapping

_FIRST_PORT, _PORTS = 10000, 20000  # below the range that Linux gives to outgoing connections


def adopt(environment: MutableMapping[str, str] = os.environ) -> None:
    """Make this process a rank, where srun started several tasks and nobody has said which rank it is: sets RANK, WORLD_SIZE, LOCAL_RANK,
    LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT. A batch script itself is no task of a step, and stays alone."""
    if "RANK" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", 1)) < 2 or "SLURM_PROCID" not in environment:
        return
    host, _, port = endpoint(environment).rpartition(":")
    counts = task_counts(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    here = counts[min(int(environment.get("SLURM_NODEID", 0)), len(counts) - 1)]
    found = {"RANK": environment["SLURM_PROCID"], "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"], "LOCAL_RANK": environment["SLURM_LOCALID"],
             "LOCAL_WORLD_SIZE": str(here), "MASTER_ADDR": host, "MASTER_PORT": port}
    environment.update({key: environment.get(key, value) for key, value in found.items()})


def endpoint(environment: Mapping[str, str] = os.environ) -> str | None:
    """HOST:PORT on the first machine of the step, the same for all its tasks; None outside of SLURM."""
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if not nodes or "SLURM_JOB_ID" not in environment:
        return None
    step = environment.get("SLURM_STEP_ID", "0")
    return f"{first_host(nodes)}:{_FIRST_PORT + (int(environment['SLURM_JOB_ID']) * 31 + (int(step) if step.isdigit() else 0)) % _PORTS}"


def first_host(nodes: str) -> str:
    """The first host of a list such as "gpu[03-05,09]-ib,login1": gpu03-ib."""
    first = re.match(r"(?:[^\[\],]|\[[^\]]*\])+", nodes.strip())
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first.group()) if first else nodes


def task_counts(text: str) -> list[int]:
    """Tasks of each machine from a count such as "4(x2),3": [4, 4, 3]."""
    counts = []
    for part in text.split(","):
        count, times = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip()).groups()
        counts += [int(count)] * int(times or 1)
    return counts
