"""Headless Chromium over its pipe of the DevTools protocol: what a page shows, and what it says."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
PHONE = 390  # CSS pixels

_CONTRAST = """selector => {
    const light = css => css.match(/[\\d.]+/g).slice(0, 3).map(part => Number(part) / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const of = light(getComputedStyle(document.querySelector(selector)).color);
    const on = light(getComputedStyle(document.body).backgroundColor);
    return (Math.max(of, on) + 0.05) / (Math.min(of, on) + 0.05); }"""

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


class Page:
    """A tab; `said` collects what its console and its log have got, and what it has asked for."""

    def __init__(self, send_to, read_from):
        self._to, self._from = send_to, read_from
        self._number, self._session = 0, {}
        self._buffer = b""
        self.said, self.asked = [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": found["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """The result of a command."""
        answer = self._result(method, **parameters)
        assert "error" not in answer, answer
        return answer["result"]

    def _result(self, method, **parameters):
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._to, json.dumps(command).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._number:
                return message

    def _next(self):
        while b"\0" not in self._buffer:
            got = os.read(self._from, 1 << 20)
            assert got, "Chromium has ended"
            self._buffer += got
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        method, about = message.get("method", ""), message.get("params", {})
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.said.append(about)
        if method == "Network.requestWillBeSent":
            self.asked.append(about["request"]["url"])
        return message

    def open(self, url, width=1280, dark=False):
        """Go to a page, and wait until it has loaded."""
        phone = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, expression):
        """What an expression of JavaScript is in the page; None while the page changes."""
        wanted = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        found = self._result("Runtime.evaluate", **wanted)
        return found.get("result", {}).get("result", {}).get("value")

    def until(self, expression, seconds=60):
        """Wait until an expression is true, also over a change of the page."""
        end = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < end, (expression, self.text)
            time.sleep(0.05)

    @property
    def text(self):
        return self.value("document.body.innerText")

    @property
    def too_wide(self):
        """By how many pixels the page is wider than its window."""
        return self.value("document.documentElement.scrollWidth - innerWidth")

    def contrast(self, selector):
        """The contrast of an element's text with the page, as WCAG 2 defines it."""
        return self.value(f"({_CONTRAST})({json.dumps(selector)})")


@contextmanager
def browser(folder):
    """A tab of a Chromium that reaches nothing but this machine."""
    pipes = [os.pipe(), os.pipe()]
    # Above the numbers that they have in Chromium.
    reads, writes = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (pipes[0][0], pipes[1][1]))
    command = [
        *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
        *(f"--user-data-dir={folder}", "--no-first-run", "--disable-dev-shm-usage"),
        *(
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ),
    ]
    start = (
        f"import os, sys; os.dup2({reads}, 3); os.dup2({writes}, 4); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", start, *command],
        pass_fds=(reads, writes),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for fd in (reads, writes, pipes[0][0], pipes[1][1]):
        os.close(fd)
    try:
        page = Page(pipes[0][1], pipes[1][0])
        yield page
        page._session = {}
        page.call("Browser.close")
    finally:
        process.terminate()
        process.wait(30)
        os.close(pipes[0][1])
        os.close(pipes[1][0])
