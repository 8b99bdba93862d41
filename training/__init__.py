"""How the embedded model was made: its world, its training and its checks."""
