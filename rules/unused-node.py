from onnxfix.rule import Context, Edit, Node, Rule

_FAR = 64  # nodes looked at before a result counts as used


class UnusedNode(Rule):
    ops = ("*",)

    def match(self, node: Node, ctx: Context) -> list[Node] | None:
        graph = node.graph
        found: dict[Node, None] = {node: None}
        stack = [node]
        while stack:
            for output in stack.pop().proto.output:
                if output and graph.is_output(output):
                    return None
                for user, _ in graph.uses(output) if output else ():
                    if user not in found:
                        found[user] = None
                        stack.append(user)
            if len(found) > _FAR:
                return None
        return list(found)

    def rewrite(self, node: Node, found: list[Node], edit: Edit, ctx: Context) -> None:
        waiting = dict.fromkeys(found)
        while waiting:
            for last in [n for n in waiting if all(n.graph.unused(o) for o in n.proto.output)]:
                edit.remove(last)
                del waiting[last]
        after = f", with {len(found) - 1} after it" if len(found) > 1 else ""
        edit.note = f"nothing depends on {node.op}: it goes{after}"
