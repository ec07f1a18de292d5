"""The upstream's side of the wire: framing, relaying, deadlines, the pool."""
