# A shell that nobody uses for a quarter of an hour ends; no program of a session leaves its memory on disk.
TMOUT=900
readonly TMOUT
export TMOUT
ulimit -c 0
