"""What each command takes and says of itself; its work is in a file of :mod:`libmoe.cli`, imported when it runs."""
