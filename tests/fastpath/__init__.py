"""Key digest, limit cells and board: one process against an oracle, many processes against each other and SIGKILL."""
