"""A headless Chromium, driven over the DevTools protocol: https://chromedevtools.github.io/devtools-protocol/."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import websocket

# The headless shell is the last, since it asks for less than what people use, such as for no icon.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chromium-headless-shell")
# Of a key: what it writes, and its number.
KEYS = {
    "Enter": ("\r", 13),
    "Tab": ("", 9),
    "Escape": ("", 27),
    "ArrowLeft": ("", 37),
    "ArrowUp": ("", 38),
    "ArrowRight": ("", 39),
    "ArrowDown": ("", 40),
    "/": ("/", 191),
}


def find_browser() -> str | None:
    """Return the program of a Chromium, or None if there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One tab. Keys and clicks are those of a user: the page may start a video after one.

    Attributes:
        console: What went wrong in the page, and what it was refused, such as by its content security policy. What
            Chromium only remarks is not in it: that somebody was faster than ``autofocus``, for one.
    """

    def __init__(self, binary: str, *, size: tuple[int, int] = (1000, 800)) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        self._process = subprocess.Popen(  # noqa: S603 - a browser that is installed
            [
                binary,
                "--headless",
                "--no-sandbox",  # test machines often are containers, and run as root
                "--disable-gpu",
                "--allow-pre-commit-input",  # else clicks and keys before the first picture of a page are dropped
                "--disable-dev-shm-usage",
                "--mute-audio",
                "--remote-debugging-port=0",
                f"--user-data-dir={self._folder.name}",
                f"--window-size={size[0]},{size[1]}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a group of its own: the binary often is a script that starts the browser
        )
        try:
            port = self._port()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
                tab = next(each for each in json.load(answer) if each["type"] == "page")
            self._socket = websocket.create_connection(tab["webSocketDebuggerUrl"], timeout=60, suppress_origin=True)
        except BaseException:
            self.close()
            raise
        self._last = 0
        self.console: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.command(f"{domain}.enable")

    def _port(self) -> int:
        file = Path(self._folder.name, "DevToolsActivePort")
        for _ in range(600):
            if file.is_file() and (lines := file.read_text().splitlines()):
                return int(lines[0])
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError("the browser did not start")

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the protocol, and return its result. Raises RuntimeError if it fails."""
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._last:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return dict(message["result"])
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] != "info":
                self.console.append(message["params"]["entry"]["text"])
            if message.get("method") == "Runtime.exceptionThrown":
                self.console.append(json.dumps(message["params"]["exceptionDetails"]))

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript, of a promise what it keeps. RuntimeError if it throws."""
        result = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 30.0) -> None:
        """Wait until an expression is true, here or on the page that is on its way. TimeoutError if it never is."""
        for _ in range(int(seconds / 0.05)):
            try:
                if self.evaluate(expression):
                    return
            except RuntimeError as error:
                if "navigated" not in str(error) and "context" not in str(error):
                    raise
            time.sleep(0.05)
        raise TimeoutError(f"never came true: {expression}; the page wrote {self.console}")

    def open(self, address: str) -> None:
        """Go to an address, and wait until its page is there."""
        self.command("Page.navigate", url=address)
        self.wait(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(address)})")

    def type(self, text: str) -> None:
        """Type a text into what has the focus."""
        self.command("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press one of `KEYS` and let it go."""
        text, code = KEYS[key]
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.command("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.command("Input.dispatchKeyEvent", type="keyUp", **about)

    def click(self, selector: str) -> None:
        """Wait until the element is drawn where the pointer goes, click it, and wait until the page has the click."""
        name = json.dumps(selector)
        self.wait(
            f"""new Promise(done => requestAnimationFrame(() => {{
                const box = document.querySelector({name}).getBoundingClientRect()
                const [x, y] = [box.x + box.width / 2, box.y + box.height / 2]
                window.target = {{ x, y, clicked: false }}
                done(document.querySelector({name}).contains(document.elementFromPoint(x, y)))
            }}))"""
        )
        place = self.evaluate(
            "addEventListener('click', () => { target.clicked = true }, { capture: true, once: true }), target"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.command("Input.dispatchMouseEvent", type=kind, x=place["x"], y=place["y"], button="left", clickCount=1)
        self.wait("target.clicked")

    def hover(self, selector: str) -> None:
        """Move the pointer to the middle of the element."""
        place = self.evaluate(
            f"""(box => ({{ x: box.x + box.width / 2, y: box.y + box.height / 2 }}))(
                document.querySelector({json.dumps(selector)}).getBoundingClientRect())"""
        )
        self.command("Input.dispatchMouseEvent", type="mouseMoved", x=place["x"], y=place["y"])

    def resize(self, width: int, height: int) -> None:
        """Give the page another size, in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.command("Emulation.setDeviceMetricsOverride", **size)

    def prefer(self, **features: str) -> None:
        """Set what a user prefers, such as `color_scheme="dark"`; all others are as usual."""
        wanted = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        self.command("Emulation.setEmulatedMedia", features=wanted)

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file for an input of files."""
        root = self.command("DOM.getDocument")["root"]["nodeId"]
        node = self.command("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.command("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def screenshot(self, path: Path) -> None:
        """Write what is in view as PNG."""
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """End the browser."""
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self._process.pid, kind)
                self._process.wait(5)
        self._folder.cleanup()
