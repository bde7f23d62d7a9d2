"""An asyncio-native message queue on Redis Streams.

The floors, from the ground up; imports go down only (`pyproject.toml` has them to the letter):

1. words: `_errors` `_keys` `_message` `_retry` `_clock` `_pauses`, and `_host`, which owns every
   background task
2. rules, which touch no network: `_config` `_outcome` `_history` `_held` `_read_ahead` `_times`
   `_failover`; bodies: `_codec` `_handler` on `_json` `_hints` `_models` `_scalars` `_shape`
3. one connection, and where it leads: `_wire` `_address` `_opening` `_sentinels` `_lent`
   `_topology` `_about`
4. what is said and heard on it: `_scripts` `_bell` `_lookout`; a wire that mends itself: `_link`;
   all of an application's wires: `_connection`, for as long as `_lifetime` says
5. every operation, named by what it means: `_stream` `_member`; sends, gathered: `_batch`
   `_backlog` `_memory` `_batcher`; a queue on a connection: `_channel`
6. one task each: `_reader` `_promoter` `_dispatcher` `_invoker` `_puller` `_settler` `_lease`
   `_recoverer` `_reporter` `_watcher`; the group they read from: `_group`
7. where they are wired: `_assembly`, `_consumer`, `_producer`; `_dead_letters`, `_running`
8. the face: `_queue`
9. doors of their own: `_cli…` and `_demo…`, `testing`

New here? `_message`, `_outcome`, `_stream`, `_member`, then `_assembly`.
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
