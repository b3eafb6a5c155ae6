"""Running and timing: generation runs, passes, audits, perplexity, the cost of forwards, the paired benchmark."""
