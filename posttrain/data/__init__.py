"""Where prompts and demonstrations come from: files, and verifiable tasks of the embedded world."""
