"""What entities took of items: lines, histories folded of them, what is known of items, and their files."""
