"""The book's exercises in code: `posttrain check 13.1` writes a task into a file, and grades the answer."""
