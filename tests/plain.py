"""Scripts as users run them, without the type checks of the tests: children of one server that has imported TransformerLens."""

import atexit
import json
import os
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(script, *arguments, cwd=ROOT):
    """What subprocess.run gives of `python -W ignore -c script *arguments`, without seconds of imports."""
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        asked = {"script": script, "arguments": list(map(str, arguments)), "cwd": str(cwd), "folder": folder}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        code = json.loads(server.stdout.readline())
        said, complained = (Path(folder, name).read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess([script, *arguments], code, said, complained)


@cache
def _server():
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", "import plain; plain.serve()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout.readline() == '"ready"\n'
    atexit.register(process.communicate)
    return process


def serve():
    """Fork a child a line, and say how it ended."""
    import torch
    import transformer_lens  # noqa: F401 - imported once for all children
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    print('"ready"', flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            _run(**asked)
        print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])), flush=True)


def _run(script, arguments, cwd, folder):
    for number, name in enumerate(("out", "err"), 1):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(cwd)
    sys.argv[1:] = arguments
    code = 0
    try:
        exec(compile(script, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
