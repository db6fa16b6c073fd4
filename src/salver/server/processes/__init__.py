"""Several processes as one server: a supervisor that owns the sockets and what must be one, and workers that answer."""
