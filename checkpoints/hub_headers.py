"""Reading the header of a safetensors file on the hub, without its tensors."""

from hybridize.errors import InputError

_FIRST = 100_000  # bytes; most headers are shorter
_LONGEST = 100_000_000  # bytes; the limit of the safetensors library


def read_start(url: str) -> bytes:
    """Return the header of the safetensors file at an address of the hub.

    Raises:
        InputError: the file does not begin with the length of a header.
        Exception: huggingface_hub's, if the hub does not give the file.
    """
    start = _read(url, _FIRST)
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length > _LONGEST:
        raise InputError(f"{url}: not a valid safetensors file (its header has no valid length)")
    if len(start) < 8 + length:
        start = _read(url, 8 + length)
    return start[8 : 8 + length]


def _read(url: str, count: int) -> bytes:
    """Return the first bytes of a file, or the whole file if it is shorter."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

    headers = build_hf_headers() | {
        "Range": f"bytes=0-{count - 1}",
        "Accept-Encoding": "identity",
    }
    data = bytearray()
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with http_stream_backoff("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) >= count:  # some mirrors ignore the range, and send the whole file
                break
    return bytes(data[:count])
