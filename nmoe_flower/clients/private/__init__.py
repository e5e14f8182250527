"""DP-SGD at a client, and the ledgers that never forget what was spent."""
