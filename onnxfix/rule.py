"""What a rule is.

A rule looks at nodes of a few operators, says in `match` whether it would act (reading only), and acts in `rewrite`,
through an `Edit` only. It keeps no state, which alone gives dry runs, explanations and diffs. Its text (summary, why,
cases) is its page, `<id>.md` beside it: the documentation and the test.

    class ResizeCubic(Rule):
        ops = ("Resize",)
        safety = Safety.CLOSE

        def match(self, node, ctx):
            if node.attr("mode") != "cubic":
                return None
            sizes = node.graph.static_shape(node.output(0))
            if sizes is None:
                raise Skip("the output size is not known; freeze the dynamic axes")
            return sizes

        def rewrite(self, node, found, edit, ctx):
            ...
            edit.replace_node(node, y)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from onnxfix.errors import RuleError, Skip
from onnxfix.graph import Edit, Graph, Node
from onnxfix.report import Effect, Safety

__all__ = ["REWRITABLE", "Context", "Edit", "Graph", "Node", "Rule", "RuleError", "Safety", "Skip", "Verdict"]

# What a rule that waits for a refusal acts on. A node that only needs NVIDIA's plugin library is left to it.
REWRITABLE = frozenset({Effect.REFUSED, Effect.WRONG, Effect.BUILD_FAILS, Effect.UNKNOWN})


class Verdict(Protocol):
    """What the matrix says of a node the target does not fully take."""

    @property
    def effect(self) -> Effect: ...
    @property
    def reason(self) -> str: ...
    @property
    def evidence(self) -> str: ...


class Target(Protocol):
    """What rules may ask of a target."""

    @property
    def name(self) -> str: ...
    @property
    def release(self) -> str: ...
    def supports(self, op: str, domain: str = "") -> bool:
        """Whether the target has the operator at all, whatever limits it puts on it."""
        ...

    def takes_dtype(self, dtype: int) -> bool:
        """Whether tensors of this TensorProto.DataType may occur in a network at all."""
        ...

    def narrows(self, dtype: int) -> bool:
        """Whether the parser turns tensors of this TensorProto.DataType into a narrower one without an error."""
        ...


@dataclass
class Context:
    """What a rule may know beside the graph."""

    target: Target
    judge: Callable[[Node], Verdict | None]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # rule id -> its options

    def supports(self, op: str, domain: str = "") -> bool:
        return self.target.supports(op, domain)

    def refused(self, node: Node) -> bool:
        verdict = self.judge(node)
        return verdict is not None and verdict.effect in REWRITABLE


class Rule:
    """Base of all rules. Subclasses set the class attributes and write `match` and `rewrite`.

    `ops` is the dispatch key: operator names, "domain::Op" outside ai.onnx, "*" for any node, "<graph>" for a rule
    that looks at whole scopes (then `match` and `rewrite` get a Graph instead of a Node).
    """

    ops: ClassVar[tuple[str, ...]] = ()
    safety: ClassVar[Safety] = Safety.EXACT
    # "refused": only where the target does not take the node. "always": wherever it matches (folding, cleaning).
    when: ClassVar[str] = "refused"
    plugin: ClassVar[str] = ""  # the TensorRT plugin it writes: then it acts only where a rule file names that plugin
    options: ClassVar[Mapping[str, Any]] = {}  # names and defaults of what a rule file may set

    id: str = ""
    page: Path | None = None

    def match(self, node: Any, ctx: Context) -> Any:
        """Captures for `rewrite` when the rule applies, None when it doesn't.

        Raises Skip, with a reason a user understands, when the node is this rule's business but can't be helped.
        """
        raise NotImplementedError

    def rewrite(self, node: Any, found: Any, edit: Edit, ctx: Context) -> None:
        """Make the change. `found` is what `match` returned, never None."""
        raise NotImplementedError

    def option(self, ctx: Context, name: str) -> Any:
        return ctx.options.get(self.id, {}).get(name, self.options[name])

    @property
    def summary(self) -> str:
        """The first paragraph of the rule's page."""
        from onnxfix.page import summary

        return summary(self.page) if self.page else self.id
