"""Open Inference Protocol v2: tensors to and from its JSON and binary forms."""
