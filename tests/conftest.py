"""What holds for all tests: processes keep the byte code that they compile."""

import os
import sys

# where it is not to be written, each of the hundreds of processes compiles all it imports: a second
# of processor time for each daemon, and more than half of a command's
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
