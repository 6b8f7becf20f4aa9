"""Several ways to train, over several seeds, under equal conditions: the runs, and what their figures say together."""
