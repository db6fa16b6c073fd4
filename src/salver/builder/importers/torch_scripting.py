"""An ExportedProgram as TorchScript: its graph written with operators that TorchScript's compiler knows."""

from __future__ import annotations

from typing import Any, Final

import torch

_CHECKS: Final = ("_assert_async", "_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range")


def script_program(program: Any) -> Any:
    """Compile the graph of an ExportedProgram. Checks of sizes are left out; outputs come as a tensor or a tuple.

    Raises:
        RuntimeError: as TorchScript's compiler raises it, for what it does not know (`torch.cond`).
    """
    module = program.module(check_guards=False)
    graph = module.graph
    for node in list(graph.nodes):
        if node.op == "placeholder" and not node.users and node.name not in program.graph_signature.user_inputs:
            graph.erase_node(node)
        elif isinstance(node.target, torch._ops.OpOverload):
            _rewrite(graph, node)
    (output,) = graph.find_nodes(op="output")
    values = [value for value in output.args[0] if value is not None]
    output.args = (values[0] if len(values) == 1 else tuple(values),)
    graph.eliminate_dead_code()
    graph.set_codegen(torch.fx.graph.CodeGen())
    return torch.jit.script(torch.fx.GraphModule(module, graph))


def _rewrite(graph: Any, node: Any) -> None:
    """Overloads are chosen by TorchScript itself; sizes are methods there."""
    packet = node.target.overloadpacket
    name = packet.__name__
    if name.startswith(_CHECKS) and not node.users:
        graph.erase_node(node)
    elif name == "sym_size" and node.target.namespace == "aten":
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.call_method("size", node.args))
        graph.erase_node(node)
    else:
        node.target = packet
