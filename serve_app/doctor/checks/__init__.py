"""One module for each subject: its probe, if it has one, and its checks."""
