"""What both ends of a wire speak: JSON with NaN, tensor elements as bytes, protobuf messages, HTTP/2 frames. Pure: no
socket, no clock. Servers and clients import it; it knows neither."""
