"""Looking at the ledgers of nodes, checking them, undoing what they hold."""
