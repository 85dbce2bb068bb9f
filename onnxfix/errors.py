"""Everything onnxfix raises.

    OnnxfixError                 one line for the user; `exit_status` says which kind of failure
    ├── RequestError      (2)    the request is wrong: arguments, missing file, a full disk
    │   ├── ModelError    (2)    the file is no usable ONNX model
    │   ├── RuleError     (2)    a rule, a rule page or a rule file is wrong
    │   └── TargetError   (2)    no such target
    ├── RefusedError      (1)    the model is refused, or a proof failed
    └── UnavailableError  (3)    a required proof could not run here

`Skip` is no error: a rule raises it in `match` to decline a node and say why.
"""

from __future__ import annotations


class OnnxfixError(Exception):
    """Base of all errors meant for the user: `str(error)` is one line saying what, where and what to do."""

    exit_status = 2


class RequestError(OnnxfixError):
    """The request itself is wrong."""


class ModelError(RequestError):
    """The file is missing, unreadable or no ONNX model."""


class RuleError(RequestError):
    """A rule, a rule's page or a rule file is wrong; the text begins with `file:line:column` where known."""


class TargetError(RequestError):
    """No target of that name."""


class RefusedError(OnnxfixError):
    """The model is refused, or a proof failed."""

    exit_status = 1


class UnavailableError(OnnxfixError):
    """A proof that was required could not run on this machine."""

    exit_status = 3


class Skip(Exception):
    """Raised by a rule's `match`: the node is this rule's business, but it must be left alone, because …"""
