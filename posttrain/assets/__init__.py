"""Package data: the embedded text world, its tokenizer trainer, and (once trained) the small base models."""
