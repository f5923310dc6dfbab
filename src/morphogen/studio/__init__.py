"""The local web app: `serve`, an endless slide or a finished one in the browser."""
