"""What a request can be answered with beside a result: an HTTP status and one line."""

MOST = 500  # characters of a message, which may quote the request


class Refusal(Exception):
    """A request that gets no result.

    Attributes:
        status: of HTTP; gRPC's code is chosen by it. message: one line. retry_after: seconds, or None.
    """

    status = 500
    retry_after: int | None = None

    def __init__(self, message: str):
        super().__init__(message)
        self.message = " ".join(message.split())[:MOST]


class BadRequest(Refusal):
    """What was sent is no request of the protocol, or no video of this detector."""

    status = 400


class NotFound(Refusal):
    """No such model or path."""

    status = 404


class SlowBody(Refusal):
    """The request did not arrive within its time."""

    status = 408


class TooLarge(Refusal):
    """More bytes than the server takes in one request."""

    status = 413


class Encoded(Refusal):
    """A body that is compressed."""

    status = 415


class Gone(Refusal):
    """The client has left; the status is one that servers write to their logs for it."""

    status = 499


class Busy(Refusal):
    """As many requests as the server accepts at a time are being answered."""

    status = 503
    retry_after = 1


class Late(Refusal):
    """Accepted, but not computed within its time."""

    status = 504


class Failed(Refusal):
    """The server's fault; its log has the rest."""
