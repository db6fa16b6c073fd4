"""A peer: the network in MLServer, by a runtime of a few lines."""

from __future__ import annotations

import peer_session
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Model(MLModel):
    """What MLServer calls."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The output of the request's rows."""
        y = peer_session.infer(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output(peer_session.OUTPUT, y)])
