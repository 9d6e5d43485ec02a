"""Errors reported to callers, as one tree. Class attributes hold status and code; messages say what to do.

HeadwayError
├── BadRequest            400   the request is invalid
│   ├── UnsupportedParameter    affects the answer, and is not supported
│   ├── ContextTooLong
│   ├── PreviousResponseNotFound
│   ├── UnsatisfiableSchema     no finite value satisfies a schema that the answer must satisfy
│   └── EndedWorkers            two workers ended right after they received it
├── Unauthorized          401
├── Forbidden             403
├── UnknownModel          404
├── NotFound              404
├── MethodNotAllowed      405
├── BodyTooSlow           408
├── BodyTooLarge          413
├── Overloaded            429   an SLO cannot be met: nothing was spent
├── OverBudget            429   a budget has too little left: nothing was spent
├── RateLimited           429   a rate limit of a key or tenant: nothing was spent
├── NoWorker              503   no worker is available
└── WorkerLost            502   the worker died while the request ran
"""

from typing import ClassVar, Self


class HeadwayError(Exception):
    """Base of all errors. `param` is the path of the invalid request field, such as `messages[2].content`."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def without_frames(self) -> Self:
        """Itself, fit to be kept: an error with its frames, or those of its causes, holds what holds it until a collection."""
        error: BaseException | None = self
        while error is not None:
            error.__traceback__ = None
            error = error.__cause__ or error.__context__
        return self


class BadRequest(HeadwayError):
    status, code, type = 400, "invalid_request", "invalid_request_error"


class UnsupportedParameter(BadRequest):
    code = "unsupported_parameter"


class ContextTooLong(BadRequest):
    code = "context_length_exceeded"


class PreviousResponseNotFound(BadRequest):
    code = "previous_response_not_found"


class UnsatisfiableSchema(BadRequest):
    code = "unsatisfiable_schema"


class EndedWorkers(BadRequest):
    code = "request_ended_workers"


class Unauthorized(HeadwayError):
    status, code, type = 401, "invalid_api_key", "invalid_request_error"


class Forbidden(HeadwayError):
    status, code, type = 403, "not_allowed", "invalid_request_error"


class UnknownModel(HeadwayError):
    status, code, type = 404, "model_not_found", "invalid_request_error"


class NotFound(HeadwayError):
    status, code, type = 404, "not_found", "invalid_request_error"


class MethodNotAllowed(HeadwayError):
    status, code, type = 405, "method_not_allowed", "invalid_request_error"


class BodyTooSlow(HeadwayError):
    status, code, type = 408, "body_too_slow", "invalid_request_error"


class BodyTooLarge(HeadwayError):
    status, code, type = 413, "body_too_large", "invalid_request_error"


class HeadersTooLarge(HeadwayError):
    status, code, type = 431, "headers_too_large", "invalid_request_error"


class Overloaded(HeadwayError):
    status, code, type = 429, "overloaded", "rate_limit_error"


class OverBudget(HeadwayError):
    """A budget has too little left. A retry before `retry_after_s` fails; None means that the budget does not reset."""

    status, code, type = 429, "budget_exceeded", "insufficient_quota"


class RateLimited(HeadwayError):
    """A rate limit is reached. Without `retry_after_s` the request alone exceeds the limit, so that no retry helps."""

    status, code, type = 429, "rate_limit_exceeded", "rate_limit_error"


class NoWorker(HeadwayError):
    status, code = 503, "no_worker"


class WorkerLost(HeadwayError):
    status, code = 502, "worker_lost"
