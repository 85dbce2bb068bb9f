import numpy as np
from onnx import TensorProto

from onnxfix import emit
from onnxfix.lowering import elementwise
from onnxfix.rule import Context, Edit, Node, Rule, Skip


class MlFeatures(Rule):
    ops = (
        "ai.onnx.ml::ArrayFeatureExtractor",
        "ai.onnx.ml::Binarizer",
        "ai.onnx.ml::FeatureVectorizer",
        "ai.onnx.ml::Imputer",
        "ai.onnx.ml::LabelEncoder",
        "ai.onnx.ml::OneHotEncoder",
        "ai.onnx.ml::Scaler",
    )

    def match(self, node: Node, ctx: Context) -> bool:
        rank = elementwise.rank_of(node.graph, node.input(0))
        elementwise.dtype_of(node.graph, node.input(0))
        if node.op == "Scaler":
            if rank > 2:
                raise Skip("how it scales more than two dimensions is not defined")
            if node.graph.dtype(node.input(0)) == TensorProto.DOUBLE:
                raise Skip("what it rounds between DOUBLE and FLOAT is not defined; feed it FLOAT")
        if node.op == "ArrayFeatureExtractor" and rank == 0:
            raise Skip("it has no features to choose from")
        if node.op == "FeatureVectorizer":
            self._check_widths(node)
        if node.op == "Imputer" and node.graph.dtype(node.input(0)) not in (TensorProto.FLOAT, TensorProto.INT64):
            raise Skip("only FLOAT and INT64 are imputed")
        if node.op == "OneHotEncoder" and (node.attr("cats_strings") or not node.attr("zeros")):
            raise Skip("its categories are words, or it fails for unknown ones: TensorRT can do neither")
        if node.op == "LabelEncoder":
            self._table(node)
        return True

    @staticmethod
    def _check_widths(node: Node) -> None:
        shapes = [node.graph.shape(name) for name in node.inputs]
        widths = [s[1] if s is not None and len(s) == 2 else None for s in shapes]
        if widths != list(node.attr("inputdimensions") or ()):
            raise Skip("its inputs don't have the widths it says")

    @staticmethod
    def _table(node: Node) -> tuple[np.ndarray, np.ndarray]:
        """What a LabelEncoder tells apart, and what it makes of it, with the default behind."""
        kinds = {"int64s": np.int64, "floats": np.float32}
        keys, values = (
            next((np.asarray(node.attr(f"{side}_{k}"), t) for k, t in kinds.items() if node.attr(f"{side}_{k}")), None)
            for side in ("keys", "values")
        )
        if keys is None or values is None:
            raise Skip("it looks up words or tensors of its own; number the words before the network")
        if len(np.unique(keys)) < len(keys) or np.isnan(keys).any():
            raise Skip("it has the same label twice, or NaN")
        default = node.attr("default_int64" if values.dtype == np.int64 else "default_float")
        return keys, np.append(values, values.dtype.type(default))

    def rewrite(self, node: Node, found: bool, edit: Edit, ctx: Context) -> None:
        edit.replace_node(node, getattr(self, f"_{node.op.lower()}")(node, edit))

    @staticmethod
    def _arrayfeatureextractor(node: Node, edit: Edit) -> str:
        x = node.input(0)
        if edit.graph.rank(x) == 1:
            x = emit.reshape(edit, x, [1, -1])
        return str(edit.add("Gather", [x, emit.reshape(edit, node.input(1), [-1])], axis=(edit.graph.rank(x) or 2) - 1))

    @staticmethod
    def _binarizer(node: Node, edit: Edit) -> str:
        above = edit.add("Greater", [node.input(0), emit.scalar(edit, node.attr("threshold"), node.input(0))])
        return emit.cast(edit, above, node.graph.dtype(node.input(0)))

    @staticmethod
    def _scaler(node: Node, edit: Edit) -> str:
        x = emit.cast(edit, node.input(0), TensorProto.FLOAT)
        offset, scale = (np.asarray(node.attr(a) or [v], np.float32) for a, v in (("offset", 0.0), ("scale", 1.0)))
        return str(edit.add("Mul", [edit.add("Sub", [x, offset]), scale]))

    @staticmethod
    def _featurevectorizer(node: Node, edit: Edit) -> str:
        return emit.concat(edit, [emit.cast(edit, name, TensorProto.FLOAT) for name in node.inputs], 1)

    @staticmethod
    def _imputer(node: Node, edit: Edit) -> str:
        x, kind = node.input(0), "float" if edit.graph.dtype(node.input(0)) == TensorProto.FLOAT else "int64"
        dtype, missing = elementwise.dtype_of(edit.graph, x), node.attr(f"replaced_value_{kind}")
        lost = edit.add("IsNaN", [x]) if np.isnan(missing) else edit.add("Equal", [x, np.asarray(missing, dtype)])
        return str(edit.add("Where", [lost, np.asarray(node.attr(f"imputed_value_{kind}s"), dtype), x]))

    @staticmethod
    def _onehotencoder(node: Node, edit: Edit) -> str:
        x = node.input(0)
        if elementwise.dtype_of(edit.graph, x).kind == "f":
            x = emit.cast(edit, x, TensorProto.INT64)  # as the standard has it, towards zero
        categories = np.asarray(node.attr("cats_int64s"), elementwise.dtype_of(edit.graph, x))
        same = edit.add("Equal", [emit.unsqueeze(edit, x, [edit.graph.rank(x) or 0]), categories])
        return emit.cast(edit, same, TensorProto.FLOAT)

    @classmethod
    def _labelencoder(cls, node: Node, edit: Edit) -> str:
        (keys, values), x = cls._table(node), node.input(0)
        rank = edit.graph.rank(x) or 0
        same = edit.add("Equal", [emit.unsqueeze(edit, x, [rank]), keys.astype(elementwise.dtype_of(edit.graph, x))])
        hits = emit.cast(edit, same, TensorProto.FLOAT)
        known = edit.add("Greater", [emit.reduce(edit, "ReduceMax", hits, [rank], keepdims=0), np.float32(0)])
        which = edit.add("ArgMax", [hits], axis=rank, keepdims=0)
        return str(edit.add("Gather", [values, edit.add("Where", [known, which, np.int64(len(keys))])], axis=0))
