"""Reading bytes in C against plain readers: heads, bodies, streams."""
