"""What a model is trained for: one file for each task, one class for each in `find_task`."""
