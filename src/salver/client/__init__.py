"""A small client for any server of the Open Inference Protocol, over REST or gRPC: numpy in, numpy out.

It imports `salver.core` and `salver.wire` only, so that it starts fast and is used without the rest.
"""

from __future__ import annotations

from salver.client.aio import AsyncClient
from salver.client.blocking import Client
from salver.client.flow import Retry
from salver.client.messages import Answer, Tensor

__all__ = ["Answer", "AsyncClient", "Client", "Retry", "Tensor"]
