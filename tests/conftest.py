"""What every test may rely on, however the tests were started."""

import signal

# A shell without job control starts its background jobs with SIGINT ignored, and every child inherits that, so that the
# tests which press Ctrl-C in a process of their own would wait for a death that cannot come.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
