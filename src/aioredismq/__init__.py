"""An asyncio-native message queue on Redis Streams.

The floors, from the ground up; imports go down only:

1. `_errors` `_keys` `_message` `_retry` `_host`: words, names, rules; one owner of background tasks
2. `_codec` `_handler` `_outcome` `_history` `_config` `_read_ahead` `_held`: pure rules
3. `_wire` `_topology`: one connection, and where it leads
4. `_scripts` `_bell`: what is said on it, and what is heard
5. `_link` `_connection`: a wire that mends itself; all of an application's wires
6. `_stream` `_batcher` `_channel`: every operation on a queue, named by what it means
7. `_reader` `_promoter` `_dispatcher` `_invoker` `_puller` `_settler` `_reporter`
   `_lease` `_recoverer` `_watcher`: one task each
8. `_producer` `_consumer`: where they are wired
9. `_queue` `_running`: the face
10. `_cli`, `testing`: doors of their own

New here? `_message`, `_outcome`, `_stream`, then `_consumer`.
"""

from ._config import ConsumerConfig, ProducerConfig, QueueConfig
from ._connection import Connection
from ._consumer import Consumer
from ._dead_letters import DeadLetter, DeadLetters, Redriven
from ._errors import (
    AuthenticationError,
    BacklogError,
    CommandRefusedError,
    ConfigurationError,
    ConnectionLostError,
    DecodeError,
    EncodeError,
    HandlerSignatureError,
    MessageQueueError,
    NotInitializedError,
    PermissionDeniedError,
    PoolTooSmallError,
    PublishManyError,
    PublishUncertainError,
    QueueDeletedError,
    QueueMismatchError,
    RejectMessage,
    RetryMessage,
    ServerError,
    ServerFullError,
    ServerNotReadyError,
    UnsupportedServerError,
    WrongKeyTypeError,
    WrongLoopError,
)
from ._message import Message, Record
from ._outcome import Failure
from ._producer import Producer
from ._queue import RedisMessageQueue
from ._retry import ExponentialBackoff, NoRetry, RetryPolicy
from ._running import Health, consuming, run
from ._stream import GroupInfo

__all__ = [
    "AuthenticationError",
    "BacklogError",
    "CommandRefusedError",
    "ConfigurationError",
    "Connection",
    "ConnectionLostError",
    "Consumer",
    "ConsumerConfig",
    "DeadLetter",
    "DeadLetters",
    "DecodeError",
    "EncodeError",
    "ExponentialBackoff",
    "Failure",
    "GroupInfo",
    "HandlerSignatureError",
    "Health",
    "Message",
    "MessageQueueError",
    "NoRetry",
    "NotInitializedError",
    "PermissionDeniedError",
    "PoolTooSmallError",
    "Producer",
    "ProducerConfig",
    "PublishManyError",
    "PublishUncertainError",
    "QueueConfig",
    "QueueDeletedError",
    "QueueMismatchError",
    "Record",
    "RedisMessageQueue",
    "Redriven",
    "RejectMessage",
    "RetryMessage",
    "RetryPolicy",
    "ServerError",
    "ServerFullError",
    "ServerNotReadyError",
    "UnsupportedServerError",
    "WrongKeyTypeError",
    "WrongLoopError",
    "consuming",
    "run",
]

for _name in __all__:
    # So that no traceback or repr shows a private room.
    globals()[_name].__module__ = __name__
del _name
