"""Search spaces and studies: which values the next trial draws, and which trial is stopped early."""
