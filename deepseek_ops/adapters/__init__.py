"""Adapters of the ports in ``core.ports``. The doors build them; nothing else does."""
