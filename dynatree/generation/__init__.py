"""What every decoder shares: options, requests, logits processors, traces, and the plans of a batch."""
