"""What a training is: plans, batches as a pure function of the step, DeepSpeed configuration, alert rules."""
