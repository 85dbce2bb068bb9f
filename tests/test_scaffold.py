"""`onnxfix rules new`: a rule begun from nodes of a real model matches them, and its page holds them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnxfix import catalog, page, scaffold
from onnxfix.errors import RequestError
from onnxfix.model import Model
from tests.models import fixture_models
from tests.test_engine import run

DYNAMO = fixture_models()["fastsegformer_antialias"]  # its shapes are all declared


def gelu() -> list[str]:
    nodes = onnx.load(DYNAMO).graph.node
    at = next(i for i, n in enumerate(nodes) if n.op_type == "Erf")
    chain, value = [nodes[at]], nodes[at].output[0]
    for node in nodes[at + 1 :]:
        if value in node.input:
            chain.append(node)
            value = node.output[0]
        if len(chain) == 3:
            break
    return [n.name or n.output[0] for n in chain]


def test_a_rule_from_real_nodes_matches_them(tmp_path: Path) -> None:
    written = scaffold.new_rule(DYNAMO, gelu(), "erf-chain", tmp_path)
    assert [p.name for p in written] == ["erf-chain.yml", "erf-chain.md"]
    rule = catalog.load_folder(tmp_path)["erf-chain"]
    rule.when = "always"
    case = page.read(rule.page).cases[0]
    cut = onnx.parser.parse_model(case.block.text)
    onnx.checker.check_model(cut, full_check=True)
    assert len(cut.graph.output) == 1 and len([n for n in cut.graph.node if n.op_type != "Constant"]) == 3
    model = Model(cut)
    assert rule.pattern.op == model.proto.graph.node[-1].op_type
    rule.after = onnx.parser.parse_function(
        f'<domain: "d", opset_import: ["": 18]> r ({", ".join(rule.before.input)}) => (z) {{ z = Relu({rule.before.input[0]}) }}'
    )
    proto, outcome = run(cut, rule)
    assert len(outcome.changes) == 1 and [n.op_type for n in proto.graph.node if n.op_type != "Constant"] == ["Relu"]


@pytest.mark.parametrize(
    ("nodes", "identity", "says"),
    [
        (["nowhere"], "erf-chain", "no node 'nowhere'"),
        (None, "Erf_Chain", "kebab-case"),
        (None, "there-already", "is there already"),
    ],
)
def test_wrong_requests(tmp_path: Path, nodes: list[str] | None, identity: str, says: str) -> None:
    (tmp_path / "there-already.md").write_text("")
    with pytest.raises(RequestError, match=says):
        scaffold.new_rule(DYNAMO, nodes or gelu(), identity, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
