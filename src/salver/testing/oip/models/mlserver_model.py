"""Runs inside MLServer: the models of Salver's conformance suite.

MLServer leaves the check of a request against the model's metadata to the runtime. This one checks names, as the
runtimes that come with MLServer do, and takes datatypes, shapes and values as the server decoded them.
"""

import asyncio

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceResponse, ResponseOutput


class Model(MLModel):
    """Gives its input back, or the sum and the difference of two."""

    async def load(self):
        """Nothing to load."""
        self.kind = self.settings.parameters.extra["kind"]
        return True

    async def predict(self, payload):
        """The outputs that were asked for."""
        given = {tensor.name: tensor for tensor in payload.inputs}
        expected = [tensor.name for tensor in self.inputs]
        if sorted(given) != sorted(expected):
            raise InferenceError(f"inputs are {sorted(given)}, expected {sorted(expected)}")
        outputs = {tensor.name: tensor for tensor in await self.outputs_of([given[name] for name in expected])}
        wanted = [tensor.name for tensor in payload.outputs or []] or list(outputs)
        if not set(wanted) <= set(outputs):
            raise InferenceError(f"outputs are {sorted(outputs)}, got {wanted}")
        return InferenceResponse(
            id=payload.id, model_name=self.name, model_version=self.version, outputs=[outputs[name] for name in wanted]
        )

    async def predict_stream(self, payloads):
        """One answer for each request of a stream."""
        async for payload in payloads:
            yield await self.predict(payload)

    async def outputs_of(self, given):
        """All outputs."""
        if self.kind == "sum":
            a, b = (NumpyCodec.decode_input(tensor) for tensor in given)
            return [NumpyCodec.encode_output("sum", a + b), NumpyCodec.encode_output("difference", a - b)]
        if self.kind == "slow":
            await asyncio.sleep(0.4)
        [tensor] = given
        name = "scores" if self.name == "classifier" else "y"
        return [ResponseOutput(name=name, datatype=tensor.datatype, shape=tensor.shape, data=tensor.data)]
