"""gRPC over HTTP/2: calls, message framing, deadlines and statuses. Knows no service."""
