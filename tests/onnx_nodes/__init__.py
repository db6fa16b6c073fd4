"""The onnx package's own backend tests, run through Salver's importer and backend: see docs/onnx-nodes.md."""
