"""What people bring, and whether it is taken, converted or refused: cases that run, and the page that they write."""
