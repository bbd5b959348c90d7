"""What a network is trained for: its loss and its evaluation."""
