"""How many tokens a text has: exactly where its tokenizer is known, estimated and labelled so where it is not. Pure."""
