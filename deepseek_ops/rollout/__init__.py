"""The rollout state machine: a pure function of state and observation."""
