"""A process that decodes, and can be killed: what it is told and answers, its two ends, and its script."""
