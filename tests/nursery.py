"""Processes forked from one that has imported what they need: importing takes seconds, most of what is tested takes a tenth of one"""
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile

SCRIPT = """
import json, os, socket, sys, threading, traceback
server = socket.socket(fileno=int(sys.argv[1]))
asked = server.makefile("r", encoding="utf-8")
{imports}
while True:
    _, files, _, _ = socket.recv_fds(server, 1, 2)
    if not files: os._exit(0)
    line = asked.readline()
    pid = os.fork()
    if pid == 0: break
    for file in files: os.close(file)
    server.sendall(b"%d\\n" % pid)
    server.sendall(b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
for file, number in zip(files, (1, 2)): os.dup2(file, number); os.close(file)
asked.close(); server.close()
code, sys.argv, folder, variables = json.loads(line)
os.chdir(folder); os.environ.clear(); os.environ.update(variables)
try: exec(code, {{"__name__": "__main__"}}); code = 0
except SystemExit as e: code = e.code
except BaseException: traceback.print_exc(); code = 1
threading._shutdown()
if isinstance(code, str): print(code, file=sys.stderr); code = 1
sys.stdout.flush(); sys.stderr.flush()
os._exit(code or 0)   # taking an interpreter apart takes longer than most of what it was asked for
"""


class Forked:
    "A process under way, as `subprocess.Popen` has it"
    def __init__(self, nursery, args): self.nursery, self.args, self.returncode, self.pid = nursery, args, None, int(nursery.answers.readline())

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self.nursery.ours], [], [], timeout)[0]: raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self.nursery.answers.readline())
        return self.returncode

    def kill(self):
        "True if it was still alive"
        alive = self.returncode is None and not select.select([self.nursery.ours], [], [], 0)[0]
        if alive: os.kill(self.pid, signal.SIGKILL)
        return alive


class Nursery:
    "Runs Python in processes of their own, one after the other, as `python -c` does, but `imports` are done beforehand"
    def __init__(self, imports):
        self.ours, theirs = socket.socketpair()
        self.answers = self.ours.makefile("r")
        with theirs: self.process = subprocess.Popen([sys.executable, "-c", SCRIPT.format(imports=imports), str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    def start(self, code, *argv, stdout, stderr, cwd=None, env=None):
        "Starts it; the one before must have ended"
        socket.send_fds(self.ours, [b"+"], [stdout.fileno(), stderr.fileno()])
        self.ours.sendall((json.dumps([code, ["-c", *map(str, argv)], str(cwd or os.getcwd()), dict(env or os.environ)]) + "\n").encode())
        return Forked(self, argv)

    def run(self, code, *argv, timeout=600, **more):
        "The finished process, as `subprocess.run` gives it with its text captured"
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = self.start(code, *argv, stdout=out, stderr=err, **more)
            try: process.wait(timeout)
            except subprocess.TimeoutExpired: process.kill(); process.wait(); raise
            texts = [(file.seek(0), file.read().decode())[1].replace("\r\n", "\n") for file in (out, err)]
        return subprocess.CompletedProcess(argv, process.returncode, *texts)
