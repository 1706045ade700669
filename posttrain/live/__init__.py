"""Experiments that a reader of the book starts from a page: declared here, run one at a time, on this machine alone."""
