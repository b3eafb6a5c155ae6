"""What a forward costs on a machine and how often a guess is right, as data and as files. Nothing is timed here."""
