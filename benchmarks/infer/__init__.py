"""What a peer's answer costs, beside a raw gRPC echo of the same bytes."""
