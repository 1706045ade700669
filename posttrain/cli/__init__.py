"""The command line: one file per verb, each with `main(words) -> exit code or None`, loaded when it is called."""
