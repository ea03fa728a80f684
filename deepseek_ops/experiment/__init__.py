"""Assignment of units to variants."""
