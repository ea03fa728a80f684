"""Jobs on other machines, with all their state in the object store: the launcher of every scale-out engine."""
