"""What went wrong with a bucket, said so that people can mend it.

The library's own texts are long, and quote requests and answers: they are looked at for the
server's error code, and go no further.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from kachery_p2p.errors import (
    BucketAnswerError,
    BucketBusyError,
    BucketError,
    BucketMissingError,
    BucketProviderError,
    BucketRefusedError,
    BucketUnreachableError,
)

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z]{1,64})</Code>")
_BUSY = {"429", "503"}
_REFUSED = {"401", "403"}
_MISSING = {"NoSuchBucket", "ContainerNotFound"}
_CLOCK = {"RequestTimeTooSkewed"}
_CREDENTIALS_HINT = "check the credentials (`kachery-p2p bucket check CHANNEL`) and what they allow"


class AbsentError(Exception):
    """There is no object of that key. Never leaves this room."""


@contextlib.contextmanager
def explaining(name: str) -> Iterator[None]:
    """Typed errors for all that obstore raises; `name` is how people know the bucket."""
    from obstore import exceptions

    try:
        yield
    except FileNotFoundError as error:
        if _code(error) in _MISSING:
            raise missing(name) from None
        raise AbsentError from None
    except exceptions.AlreadyExistsError:
        # Status 409: two change it at once. Whoever may meet what is there already looks itself.
        raise busy(name, "409") from None
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise refused(name, _code(error)) from None
    except (exceptions.BaseError, OSError, ValueError) as error:
        raise _judged(name, error) from None


def missing(name: str) -> BucketMissingError:
    return BucketMissingError(
        f"there is no bucket at {name}",
        hint="create it where your storage is managed, or correct its name in the URL",
    )


def refused(name: str, code: str = "") -> BucketRefusedError:
    if code in _CLOCK:
        return BucketRefusedError(
            f"{name} refused: the clock of this computer is wrong",
            hint="set the clock (NTP); the server allows a difference of some minutes",
        )
    why = {
        "SignatureDoesNotMatch": ": the secret key is wrong",
        "InvalidAccessKeyId": ": the access key is not known there",
        "ExpiredToken": ": the session token has expired",
    }.get(code, "")
    return BucketRefusedError(f"{name} refused{why}", hint=_CREDENTIALS_HINT)


def unreachable(name: str, why: str) -> BucketUnreachableError:
    return BucketUnreachableError(
        f"{name} does not answer: {why}",
        hint="check the endpoint in the URL, the network, and whether the server runs",
    )


def busy(name: str, status: str) -> BucketBusyError:
    return BucketBusyError(f"{name} is too busy (status {status})", hint="it is tried again later")


def wrong_answer(name: str, what: str) -> BucketAnswerError:
    return BucketAnswerError(
        f"{name} {what}", hint="is there a proxy or a login page in front of the server?"
    )


# How the sentence begins that a node keeps of an upload for which it could ask nobody.
NO_PROVIDER = "no member that has the credentials"


def no_provider(name: str) -> BucketProviderError:
    return BucketProviderError(
        f"{NO_PROVIDER} of {name} is connected",
        hint="start the node of a member that has them, or give this one credentials of its own:"
        " `kachery-p2p bucket add CHANNEL URL --credentials ...`",
    )


def _code(error: BaseException) -> str:
    found = _CODE.search(str(error))
    return found[1] if found else ""


def _judged(name: str, error: Exception) -> BucketError:
    text = str(error)
    found = _STATUS.search(text)
    status = found[1] if found else ""
    if _code(error) in _MISSING:
        return missing(name)
    if status in _BUSY:
        return busy(name, status)
    if status in _REFUSED:
        return refused(name, _code(error))
    if status:
        return wrong_answer(name, f"answered with status {status}")
    for word, why in _REASONS.items():
        if word in text:
            return unreachable(name, why)
    if any(word in text for word in _SENSELESS):
        return wrong_answer(name, "answered with something else than was asked for")
    if "credential" in text.lower():
        return BucketRefusedError(f"no credentials for {name} were found", hint=_CREDENTIALS_HINT)
    return BucketError(f"{name} failed ({_first_words(text)})")


_REASONS = {
    "dns error": "there is no server of that name",
    "Connection refused": "nothing listens there",
    "ConnectionRefused": "nothing listens there",
    "tcp connect error": "no connection could be made",
    "certificate": "its certificate is not trusted here",
    "TimedOut": "it took too long",
    "timed out": "it took too long",
    "operation timed out": "it took too long",
    "connection closed": "it ended the connection",
    "IncompleteMessage": "it ended the connection",
    "Connection reset": "it ended the connection",
    "error decoding response body": "it ended the connection",
    "request or response body error": "it ended the connection",
    "error sending request": "no connection could be made",
}
_SENSELESS = ("non-partial", "Content-Range", "Content-Length", "Header", "XML", "parse", "Last")


def _first_words(text: str) -> str:
    """Enough to search for, and nothing that was sent: no keys, no tokens, no queries."""
    line = text.partition("\n")[0]
    line = re.sub(r"https?://\S+", "URL", line)
    return "".join(char for char in line if char.isprintable())[:120]
