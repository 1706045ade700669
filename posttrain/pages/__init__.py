"""What runs look like: curves in the terminal, and pages of HTML that need no network. Needs no torch."""
