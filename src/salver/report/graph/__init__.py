"""A page that shows a model's graph: drawn in layers, with size and time of every operator."""

from salver.report.graph.page import render_graph
from salver.report.graph.types import GraphInfo, GraphNode, GraphView, Port

__all__ = ["GraphInfo", "GraphNode", "GraphView", "Port", "render_graph"]
