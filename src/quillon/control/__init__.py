"""The control plane: a process of its own that answers the console and knows no mail."""
