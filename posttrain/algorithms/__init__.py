"""One file per method: its config, and `train`, whose loop holds the whole algorithm in plain sight."""
