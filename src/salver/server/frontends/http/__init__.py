"""HTTP/1.1: connections, limits and routing. Knows no protocol above HTTP."""
