"""TensorFlow Serving's words: JSON rows and columns, `TensorProto`, examples, states of versions, signatures."""
