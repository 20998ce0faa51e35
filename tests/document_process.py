"""The process in which a document's `qk-taxonomy` lines and Python blocks run.

    python document_process.py SOCKET

A command is a start of Python, two seconds of imports and, where heads are classified, ten of
compiling UMAP: that is what is spent once here. All else is as in a process of the command's own:
the installed console entry point is called, with the line's arguments, working folder, environment
and files for output, and the exit code goes back. What a document's Python blocks name, its later
ones know. Figures are saved at few dots an inch and not laid out, which would take most of the
time: other tests look at figures.

A client is ``CLIENT``, which stands under the command's name on the PATH; it sends one JSON object
with its standard output and error.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points
from typing import Any

from matplotlib.figure import Figure

#: A client as a script, to be formatted: python, socket, environment (variables of the process that
#: begin with HF_), executable: the real one, which runs where a line sets such a variable, as they
#: are read at import.
CLIENT = """\
#!{python} -IS
import json, os, socket, sys

start = {environment}
if start != {{name: value for name, value in os.environ.items() if name[:3] == "HF_"}}:
    os.execv({executable!r}, [{executable!r}, *sys.argv[1:]])
request = {{"command": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
with socket.socket(socket.AF_UNIX) as server:
    server.connect({socket!r})
    socket.send_fds(server, [json.dumps(request).encode()], [1, 2])
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(16)))
"""


def ask(address: str, request: dict[str, Any], output: int) -> int:
    """Send a request; its output goes to the file descriptor ``output``. Returns the exit code."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [json.dumps(request).encode()], [output, output])
        server.shutdown(socket.SHUT_WR)
        return int(server.recv(16))


def _save_quickly() -> None:
    save = Figure.savefig

    def quick(figure: Figure, *arguments: Any, **named: Any) -> None:
        if named.get("format") == "png":  # others are frames, whose size is agreed beforehand
            figure.set_layout_engine("none")
            named |= {"dpi": 30, "bbox_inches": None}
        save(figure, *arguments, **named)

    Figure.savefig = quick  # type: ignore[method-assign]


def _exit_code(call: Callable[[], object]) -> int:
    """What the interpreter would end with after a call."""
    try:
        call()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _serve(address: str) -> None:
    (script,) = entry_points(group="console_scripts", name="qk-taxonomy")
    command = script.load()
    _save_quickly()
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        while True:
            client, _ = server.accept()
            with client:
                content, files, *_ = socket.recv_fds(client, 1 << 20, 2)
                while part := client.recv(1 << 20):
                    content += part
                request = json.loads(content)
                for target, file in enumerate(files, start=1):
                    os.dup2(file, target)
                    os.close(file)
                os.chdir(request["folder"])
                os.environ.clear()
                os.environ.update(request["environment"])
                if "command" in request:
                    sys.argv = ["qk-taxonomy", *request["command"]]
                    code = _exit_code(lambda: sys.exit(command()))
                else:
                    source = compile(request["python"], request["name"], "exec")
                    code = _exit_code(partial(exec, source, namespace))
                sys.stdout.flush()
                sys.stderr.flush()
                client.sendall(str(code).encode())


if __name__ == "__main__":
    _serve(sys.argv[1])
