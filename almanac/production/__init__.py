"""What the production form needs beside the processes themselves: secret files, databases, questions about health."""
