"""What jax's C++ code prints when it ends a process, as one sentence. Runs beside a process of several, and imports nothing.

When a process of a run is lost, jax ends the others from a C++ thread: a dozen lines of log and stack on file descriptor 2,
then SIGABRT. Python cannot catch that (a callback in Python crashes in jaxlib 0.10). So file descriptor 2 of each process is
the standard input of this small program, which lets every line through but those: of them it makes a sentence that names the
process that was lost and says what to do. A log that it does not know is printed as it is.
"""

import json
import re
import sys

RECORD = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ (\w+)\.\w+:\d+\] ")  # the beginning of a record of such a log
SERVICE = ("coordination_service", "coordination_service_agent", "client")  # the files that speak of lost processes
ENDED = "the JAX distributed service detected fatal errors"  # the last record before SIGABRT
STACK = "*** Check failure stack trace"
HOSTS = "\x1ehosts "  # before a JSON list of the hosts of all processes: what the process tells this program
AGAIN = "run the same command on all hosts again: it goes on from the last checkpoint"


def sentence(text, about):
    """The records of jax's coordination service, joined, -> what happened and what to do.

    Args:
      about: {"number", "count", "address": of this process, None where unknown; "hosts": list, empty before all have met;
        "start", "lost": seconds that jax waits for all to come, and for a sign of life}.
    """
    count = about["count"] or "all"
    silent = re.search(r"stopped sending heartbeats\):([\s\S]*?)The tasks have crashed", text)
    if silent:
        lost = sorted({int(number) for number in re.findall(r"(?:task:)?(\d+)\s*$", silent[1], re.MULTILINE)})
        return f"{names(lost, about['hosts'])} was lost: no sign of life for {about['lost']} s; {AGAIN}"
    wrong = re.search(r"Unexpected task registered with task\D*(\d+)", text)
    if wrong:
        return f"process {wrong[1]} is not among those that process 0 waits for; set JAX_NUM_PROCESSES to the same on all hosts"
    twice = re.search(r"(?:task:)?(\d+) unexpectedly tried to connect", text)
    if twice:
        return (
            f"process {twice[1]} was started twice, or restarted alone; end all processes, give each its own JAX_PROCESS_ID, "
            "and run the same command on all hosts again"
        )
    if "RegisterTask" in text:
        return (
            f"not all of {count} processes came within {about['start']} s to {about['address'] or 'the first one'}; start the "
            "command on every host, with the same JAX_NUM_PROCESSES"
        )
    if "Failed to send RPC to coordination service" in text:
        return f"{names([0], about['hosts'])} was lost, or ended for a reason that its own output says; {AGAIN}"
    status = re.search(r"absl::Status: (.*)", text)
    return f"jax ended the run ({status[1] if status else 'no reason given'}); {AGAIN}"


def names(numbers, hosts):
    """[1, 2], ['a', 'b', 'c'] -> 'process 1 (host b), process 2 (host c)'."""
    return ", ".join(f"process {n} (host {hosts[n]})" if n < len(hosts) else f"process {n}" for n in numbers)


class Filter:
    """Takes lines, writes those that are no record of the coordination service, and the sentence when jax gives up."""

    def __init__(self, about, write):
        self.about, self.write = about, write
        self.held, self.inside, self.done = [], False, False  # lines of the service, whether the last was one, sentence said

    def line(self, line):
        """One line with its newline."""
        if line.startswith(HOSTS):
            self.about["hosts"] = json.loads(line[len(HOSTS) :])
            return
        record = RECORD.match(line)
        if record:
            self.inside = record[1] in SERVICE and line[0] in "EF"
        if not self.inside:
            self.write(line)
            return
        self.held.append(line)  # with the lines that go on after it
        if line.startswith(STACK):
            self.end()

    def end(self):
        """The stack begins, or nothing more comes."""
        text = "".join(self.held)
        if ENDED in text and not self.done:
            who = f" (process {self.about['number']} of {self.about['count']})" if self.about["count"] else ""
            self.write(f"plum {self.about['command']}: error{who}: {sentence(text, self.about)}\n")
            self.done = True
        elif not self.done:
            self.write(text)
        self.held = []


def main():
    """ARGV: the dictionary `about` of `sentence` as JSON, with the "command"."""

    def write(text):
        sys.stdout.write(text)
        sys.stdout.flush()

    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")
    lines = Filter(json.loads(sys.argv[1]), write)
    for line in sys.stdin:
        lines.line(line)
    lines.end()


if __name__ == "__main__":
    main()
