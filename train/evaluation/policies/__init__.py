"""How many rollout steps a question reads: by rule, by a gate, always, never; and what each costs."""
