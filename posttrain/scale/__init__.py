"""Training on more than one processor: sharded models now; placing learners and samplers on machines comes here too."""
