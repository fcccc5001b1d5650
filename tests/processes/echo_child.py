"""A child process for test_child.py: `python -m processes.echo_child PIPE WORD` sends back what it gets."""

from __future__ import annotations

import os
import sys
import time

import numpy as np

from longvit.processes.child import connect_to_parent, send_array

if __name__ == "__main__":
    pipe = connect_to_parent()
    pipe.send((sys.argv[2], os.environ.get("WORD"), os.getsid(0) == os.getpid()))
    while True:
        message = pipe.recv()
        if message == "sleep":
            time.sleep(600)
        elif message == "exit":
            sys.exit(7)
        elif isinstance(message, int):
            send_array(pipe, (np.arange(message) % 251).astype(np.uint8).reshape(-1, 1000))
        else:
            pipe.send(message)
