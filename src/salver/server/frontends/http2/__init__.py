"""HTTP/2: connections that carry gRPC calls and HTTP exchanges side by side."""
