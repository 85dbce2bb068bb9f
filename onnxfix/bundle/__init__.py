"""What a board needs that can't install onnxfix, and what it sends back.

    made = bundle.bundle("model.onnx", "jetson-nano", "for_the_nano")   # carry the folder over, run run_board.py there
    report = bundle.read("result.json")                                 # what it wrote, as a Report

`board` is the script itself: Python 3.6, copied into the bundle as it is.
"""

from __future__ import annotations

from onnxfix.bundle.deepstream import KINDS as KINDS
from onnxfix.bundle.deepstream import Nvinfer as Nvinfer
from onnxfix.bundle.make import Bundled as Bundled
from onnxfix.bundle.make import bundle as bundle
from onnxfix.bundle.result import CHECKS as CHECKS
from onnxfix.bundle.result import read as read
