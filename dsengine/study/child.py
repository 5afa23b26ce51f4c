"""`python -m dsengine.study.child PARENT ...` becomes `dsengine ...`, a process that the kernel kills when PARENT dies, even by SIGKILL.

The wish to die outlives exec; asking for it between fork and exec would run Python in a process that may have had threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Does not return."""
    parent, *argv = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a study begun in the background by a shell ignores it, and would hand that on
    if os.getppid() != int(parent):  # it died before the line above
        os._exit(1)
    os.execv(sys.executable, [sys.executable, "-P", "-m", "dsengine.cli", *argv])


if __name__ == "__main__":
    main()
