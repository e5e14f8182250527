"""Client halves for other people's apps: any encoder, any mixture, any reply."""
