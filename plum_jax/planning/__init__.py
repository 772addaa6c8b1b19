"""What a step needs on hardware that need not be there: compiled for it, never run (`plum plan`)."""
