"""vLLM's server in this process, for as long as whoever started it lives: ``python launcher.py`` with vLLM's options.

It runs in vLLM's environment, in a session of its own, and imports nothing of ours.
"""

import os
import runpy
import signal
import sys
import threading


def _end_with_parent() -> None:
    """End this session's processes with the one that started them, however that ends: it holds the other end of the
    pipe that is standard input."""
    sys.stdin.buffer.read()
    os.killpg(os.getpgrp(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
