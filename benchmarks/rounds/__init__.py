"""What a round costs, beside a bare loop and a stock Flower app."""
