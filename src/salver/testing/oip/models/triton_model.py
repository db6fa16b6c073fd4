"""Runs inside Triton's Python backend: the models of Salver's conformance suite."""

import json
import os
import sys
import time

sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]  # the stub ignores it

import triton_python_backend_utils as pb  # noqa: E402  # after the path is set


class TritonPythonModel:
    """Gives its input back, or the sum and the difference of two."""

    def initialize(self, args):
        """Read what the configuration says."""
        config = json.loads(args["model_config"])
        self.kind = config["parameters"]["kind"]["string_value"]
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [(tensor["name"], tensor["data_type"]) for tensor in config["output"]]

    def execute(self, requests):
        """One response for each request."""
        if self.kind == "slow":
            time.sleep(0.4)
        return [pb.InferenceResponse(self.answer(request)) for request in requests]

    def answer(self, request):
        """The outputs of one request."""
        given = [pb.get_input_tensor_by_name(request, name) for name in self.inputs]
        if self.kind == "sum":
            a, b = (tensor.as_numpy() for tensor in given)
            return [pb.Tensor("sum", a + b), pb.Tensor("difference", a - b)]
        name, datatype = self.outputs[0]
        if datatype == "TYPE_BF16":  # numpy has none
            return [pb.Tensor.from_dlpack(name, given[0].to_dlpack())]
        return [pb.Tensor(name, given[0].as_numpy())]
