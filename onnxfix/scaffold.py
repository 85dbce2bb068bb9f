"""Begin a rule from a real subgraph: `onnxfix rules new --from model.onnx --nodes a,b`.

Writes a YAML rule whose `before` is what these nodes do, and a page with the nodes, cut out of the model, as its first
case. What shall stand instead is the user's to write.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import helper

from onnxfix import shapes
from onnxfix.backends.extract import extract, values_between
from onnxfix.errors import RequestError
from onnxfix.graph import Graph, Node
from onnxfix.model import load, write_atomic

IN_PLACE = 64  # elements up to which a constant is part of the pattern; larger ones become inputs of the rule


def new_rule(model: Path, nodes: Sequence[str], identity: str, folder: Path) -> tuple[Path, Path]:
    """Write `<identity>.yml` and `<identity>.md` into `folder`; returns both paths.

    `nodes` are names of nodes of the main graph, or of values they make. Raises RequestError for unknown nodes, nodes
    without a common output, files that are there already.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", identity):
        raise RequestError(f"'{identity}': a rule's id is kebab-case and names the bad thing, e.g. resize-cubic")
    if not folder.is_dir():
        raise RequestError(f"{folder}: no such folder")
    rule, page = folder / f"{identity}.yml", folder / f"{identity}.md"
    for path in (rule, page):
        if path.exists():
            raise RequestError(f"{path}: is there already; choose another id")
    graph = shapes.index(load(model))
    chosen = [_find(graph, name, model) for name in nodes]
    made = {o for n in chosen for o in n.outputs if o}
    read = dict.fromkeys(i for n in chosen for i in n.inputs if i and i not in made)
    inputs = [i for i in read if not _small(graph, i)]
    outputs = [o for o in made if graph.is_output(o) or any(u not in chosen for u, _ in graph.uses(o))]
    outputs.sort(key=lambda o: nodes_position(chosen, o))
    missing = [v for v in (*inputs, *outputs) if graph.shape(v) is None]
    if missing:
        raise RequestError(
            f"{model}: the shape of '{missing[0]}' is not known; "
            "fold it first (onnxfix apply), and begin from the result"
        )
    names = values_between([*read, *(o for n in chosen for o in n.outputs if o)])
    # Large constants become inputs of the rule, and of its case.
    cut = extract(
        graph.model.proto,
        {i: _type(graph, i) for i in inputs},
        {o: _type(graph, o) for o in outputs},
        names,
    )
    write_atomic(rule, _rule_text(chosen, inputs, outputs, names, graph))
    write_atomic(page, _page_text(identity, chosen, cut, model))
    return rule, page


def nodes_position(chosen: Sequence[Node], output: str) -> int:
    return next(i for i, n in enumerate(chosen) if output in n.outputs)


def _find(graph: Graph, name: str, model: Path) -> Node:
    found = graph.producers.get(name) or next((n for n in graph.nodes() if n.name == name), None)
    if found is None:
        raise RequestError(f"{model}: no node '{name}', nor one that makes a value of that name")
    if found.bodies:
        raise RequestError(f"{model}: '{name}' has bodies; a YAML rule takes none")
    return found


def _small(graph: Graph, name: str) -> bool:
    tensor = graph.const_tensor(name)
    return tensor is not None and math.prod(tensor.dims) <= IN_PLACE


def _type(graph: Graph, name: str) -> onnx.TypeProto:
    found = graph.type_of(name)
    assert found is not None
    return found


def _rule_text(
    chosen: Sequence[Node], inputs: Sequence[str], outputs: Sequence[str], names: dict[str, str], graph: Graph
) -> str:
    constants = dict.fromkeys(i for n in chosen for i in n.inputs if i and _small(graph, i))
    body = [helper.make_node("Constant", [], [names[c]], value=_tensor(graph, c)) for c in constants]
    for node in chosen:
        copy = onnx.NodeProto.FromString(node.proto.SerializeToString())
        copy.ClearField("name")
        del copy.metadata_props[:]
        copy.ClearField("doc_string")
        copy.input[:] = [names.get(i, "") for i in copy.input]
        copy.output[:] = [names.get(o, "") for o in copy.output]
        body.append(copy)
    function = helper.make_function(
        "rule", "r", [names[i] for i in inputs], [names[o] for o in outputs], body,
        [helper.make_opsetid(d, v) for d, v in graph.model.opsets.items()],
    )  # fmt: skip
    text = onnx.printer.to_text(function)
    text = text[text.index("(") :].rstrip()
    indented = "\n".join("  " + line.strip() if i else "  " + line for i, line in enumerate(text.splitlines()))
    return (
        f"before: |\n{indented}\n"
        "# Write here what shall stand instead; for now it is the same.\n"
        f"after: |\n{indented}\n"
        "safety: close\nwhen: refused\n"
    )


def _tensor(graph: Graph, name: str) -> onnx.TensorProto:
    array = graph.const(name)
    assert array is not None
    return onnx.numpy_helper.from_array(array)


def _page_text(identity: str, chosen: Sequence[Node], cut: onnx.ModelProto, model: Path) -> str:
    ops = " + ".join(n.op for n in chosen)
    text = onnx.printer.to_text(cut)
    return f"""# {identity}

{ops} becomes … (say in a sentence what the rule does).

## Why

Which target refuses it, and with which words.

## What changes

What stands there instead, and why the numbers are the same.

## Cases

### As in {model.name}

```onnx before target=trt-8.2
{text.strip()}
```

```onnx after
{text.strip()}
```
"""
