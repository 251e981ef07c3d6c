"""The Python client of Plumbline's HTTP API: needs httpx and pydantic, neither torch nor FAISS.

    with Client("http://127.0.0.1:8000") as client:
        score = client.score("bottle", "part.png")

``AsyncClient`` has the same methods as coroutines. Installed by itself its name is ``plumbline_client`` (README.md).
"""

from .answers import (
    Box,
    Category,
    CategoryDetails,
    ExplanationPicture,
    Health,
    ImageSize,
    Overlay,
    Point,
    RawMap,
    Readiness,
    Region,
    Score,
    Times,
    Verdict,
)
from .asynchronous import AsyncClient
from .batches import Outcome, Summary, find_images
from .errors import (
    AnswerNotUnderstood,
    Conflict,
    ConnectionFailed,
    DeadlineExceeded,
    Forbidden,
    ImageRefused,
    InvalidParameter,
    InvalidRequest,
    NotFound,
    PlumblineError,
    ProblemError,
    RateLimited,
    ServiceFault,
    Unauthorized,
    Unavailable,
)
from .retries import Retries
from .synchronous import Client

__all__ = [
    "AnswerNotUnderstood",
    "AsyncClient",
    "Box",
    "Category",
    "CategoryDetails",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "DeadlineExceeded",
    "ExplanationPicture",
    "Forbidden",
    "Health",
    "ImageRefused",
    "ImageSize",
    "InvalidParameter",
    "InvalidRequest",
    "NotFound",
    "Outcome",
    "Overlay",
    "PlumblineError",
    "Point",
    "ProblemError",
    "RateLimited",
    "RawMap",
    "Readiness",
    "Region",
    "Retries",
    "Score",
    "ServiceFault",
    "Summary",
    "Times",
    "Unauthorized",
    "Unavailable",
    "Verdict",
    "find_images",
]
