# ruff: noqa
# mypy: ignore-errors
"""Asks the TensorRT of this machine about the models of a bundle, and writes what it said to a file.

    python3 probe_tensorrt.py [--output result.json] [--seconds 60]

It needs Python 3.6 or newer and TensorRT's own Python package, as JetPack installs them, and nothing else. The
models are in models.zip beside it. Carry the result back to the machine the bundle was made on:

    onnxfix matrix probe --read result.json

The parser runs in a child process: it may crash on a model, and then goes on with the next.
"""

import argparse
import datetime
import importlib
import json
import os
import platform
import select
import subprocess
import sys
import time
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
WORDS = 300  # characters of a parser's reason that are kept


def main():
    arguments = argparse.ArgumentParser(description="Ask TensorRT's parser about the models of a bundle.")
    arguments.add_argument("--output", default="result.json", help="where to write (default: result.json)")
    arguments.add_argument("--seconds", type=float, default=60.0, help="time for one model (default: 60)")
    arguments.add_argument("--module", default="tensorrt", help="the package to ask (default: tensorrt)")
    arguments.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.child:
        return child(args.module)
    with open(os.path.join(HERE, "bundle.json")) as file:
        bundle = json.load(file)
    worker = Worker(args.module)
    about = worker.ask({"about": bundle["operators"]}, 300.0)
    if about is None or "error" in about:
        sys.exit("probe_tensorrt: %s" % (about or {}).get("error", "%s crashed while it was imported" % args.module))
    outcomes = {}
    for number, name in enumerate(bundle["models"]):
        answer = worker.ask({"model": number}, args.seconds)
        if answer is None:
            answer = {"taken": False, "code": "CRASH", "words": worker.death}
        outcomes[name] = answer
        if number % 50 == 0 or number + 1 == len(bundle["models"]):
            sys.stderr.write("\r%d of %d models" % (number + 1, len(bundle["models"])))
            sys.stderr.flush()
    sys.stderr.write("\n")
    result = {
        "format": bundle["format"],
        "bundle": bundle["id"],
        "onnx": bundle["onnx"],
        "package": args.module,
        "version": about["version"],
        "importers": about["importers"],
        "python": platform.python_version(),
        "machine": platform.machine(),
        "date": datetime.date.today().isoformat(),
        "outcomes": outcomes,
    }
    draft = args.output + ".part"
    with open(draft, "w") as file:
        json.dump(result, file)
    os.rename(draft, args.output)
    print("%s: %s %s took %d of %d models" % (
        args.output, args.module, about["version"], sum(o["taken"] for o in outcomes.values()), len(outcomes)))
    return 0


class Worker:
    """The child process; a new one after each death."""

    def __init__(self, module):
        self.module = module
        self.process = None
        self.death = ""

    def ask(self, request, seconds):
        """The answer, None when the child died or took too long (then `death` says how)."""
        if self.process is None:
            command = [sys.executable, os.path.abspath(__file__), "--child", "--module", self.module]
            null = open(os.devnull, "w")
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=null, bufsize=0)
            null.close()
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            line = self._line(seconds)
        except OSError:
            line = b""
        if line:
            return json.loads(line.decode())
        if line is None:
            self.process.kill()
        status = self.process.wait()
        self.death = "took longer than %g s" % seconds if line is None else "ended with status %d" % status
        self.process.stdin.close()
        self.process.stdout.close()
        self.process = None
        return None

    def _line(self, seconds):
        """One line, b"" at the end of the child, None when the time is over."""
        end, data = time.time() + seconds, b""
        while not data.endswith(b"\n"):
            left = end - time.time()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                return None
            more = os.read(self.process.stdout.fileno(), 1 << 16)
            if not more:
                return b""
            data += more
        return data


def child(module):
    """Answer requests on standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints must not come between the answers
    models = zipfile.ZipFile(os.path.join(HERE, "models.zip"))
    try:
        session = Session(module)
    except Exception as error:
        session, failure = None, "%s: %s" % (type(error).__name__, error)
    for line in sys.stdin:
        request = json.loads(line)
        if session is None:
            answer = {"error": "%s cannot be used: %s" % (module, failure)}
        elif "about" in request:
            answer = session.about(request["about"])
        else:
            answer = session.parse(models.read("%06d.onnx" % request["model"]))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


class Session:
    """TensorRT's parser."""

    def __init__(self, module):
        self.trt = importlib.import_module(module)
        self.logger = self.trt.Logger(self.trt.Logger.ERROR)
        self.trt.init_libnvinfer_plugins(self.logger, "")
        self.builder = self.trt.Builder(self.logger)

    def parser(self):
        flags = self.trt.NetworkDefinitionCreationFlag
        explicit = getattr(flags, "EXPLICIT_BATCH", None)
        network = self.builder.create_network(0 if explicit is None else 1 << int(explicit))
        return network, self.trt.OnnxParser(network, self.logger)

    def about(self, operators):
        network, parser = self.parser()
        importers = {}
        if hasattr(parser, "supports_operator"):
            importers = {op: bool(parser.supports_operator(op)) for op in operators}
        return {"version": self.trt.__version__, "importers": importers}

    def parse(self, data):
        try:
            network, parser = self.parser()
            taken = bool(parser.parse(data))
        except Exception as error:
            return {"taken": False, "code": "EXCEPTION", "words": ("%s" % error)[:WORDS]}
        if taken and not parser.num_errors:
            return {"taken": True}
        if not parser.num_errors:
            return {"taken": False, "words": "the parser gave no reason"}
        error = parser.get_error(0)
        operator = error.node_operator() if hasattr(error, "node_operator") else ""
        words = " ".join((error.desc() + " " + error.func()).split())
        return {"taken": False, "op": operator, "code": str(error.code()).split(".")[-1], "words": words[:WORDS]}


if __name__ == "__main__":
    sys.exit(main())
