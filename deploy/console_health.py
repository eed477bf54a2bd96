"""Whether the console in this container listens to the broker; its answer is the exit code."""

import ssl
from urllib.request import urlopen

urlopen("https://localhost:8080/healthz", timeout=5, context=ssl.create_default_context(cafile="/console/ca/ca.pem")).close()
