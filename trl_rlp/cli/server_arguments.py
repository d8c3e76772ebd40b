"""Arguments of a server that several commands share."""

import os
from dataclasses import dataclass, field
from typing import Any

from trl_rlp.trainer.mappings import parse_mapping


@dataclass
class ServerArguments:
    """
    Arguments of requests to an OpenAI-compatible server.

    Args:
        api_key (`str`, *optional*):
            API key, if the server requires one. It is sent to this server only and is not saved. Other users of the
            machine may see it in the list of processes, so prefer `api_key_variable`.
        api_key_variable (`str`, *optional*):
            Name of the environment variable that holds the API key, for example `OPENAI_API_KEY`. No environment
            variable of the `openai` package is read unless it is named here.
        extra_body (`dict` or `str`, *optional*):
            Further fields of each request, for example `{"top_k": -1}`. They replace fields of the same name, and null
            removes a field. For a server that refuses `max_tokens`: `{"max_tokens": null, "max_completion_tokens":
            2000}`. A command line takes JSON, and YAML takes a mapping.
        timeout (`float`, *optional*, defaults to `600.0`):
            Maximum duration of a request, in seconds.
        max_retries (`int`, *optional*, defaults to `5`):
            Maximum number of times that a request is repeated after a temporary failure.
        max_concurrency (`int`, *optional*, defaults to `16`):
            Maximum number of concurrent requests.
    """

    api_key: str | None = field(
        default=None,
        repr=False,
        metadata={
            "help": (
                "API key, if the server requires one. It is sent to this server only and is not saved. Other users of "
                "the machine may see it in the list of processes, so prefer `api_key_variable`."
            )
        },
    )
    api_key_variable: str | None = field(
        default=None,
        metadata={
            "help": (
                "Name of the environment variable that holds the API key, for example `OPENAI_API_KEY`. No "
                "environment variable of the `openai` package is read unless it is named here."
            )
        },
    )
    extra_body: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": (
                'Further fields of each request, for example `{"top_k": -1}`. They replace fields of the same name, '
                'and null removes a field. For a server that refuses `max_tokens`: `{"max_tokens": null, '
                '"max_completion_tokens": 2000}`. A command line takes JSON, and YAML takes a mapping.'
            )
        },
    )
    timeout: float = field(default=600.0, metadata={"help": "Maximum duration of a request, in seconds."})
    max_retries: int = field(
        default=5,
        metadata={"help": "Maximum number of times that a request is repeated after a temporary failure."},
    )
    max_concurrency: int = field(default=16, metadata={"help": "Maximum number of concurrent requests."})

    def connection(self) -> dict[str, Any]:
        """
        Returns the settings of the connection.

        Returns:
            `dict`: Keyword arguments that [`sample_from_server`] and [`ServerJudge`] share.

        Raises:
            TypeError: If `extra_body` is not a mapping.
            ValueError: If `extra_body` is not JSON, the environment variable is not set or no name, or two keys are
                passed.
        """
        return {
            "api_key": self._find_key(),
            "extra_body": parse_mapping("extra_body", self.extra_body),
            "timeout": self.timeout,
            "max_retries": self.max_retries,
            "max_concurrency": self.max_concurrency,
        }

    def _find_key(self) -> str | None:
        if self.api_key_variable is None:
            return self.api_key
        if self.api_key is not None:
            raise ValueError("`api_key` and `api_key_variable` are both passed. Pass one.")
        if not self.api_key_variable.isidentifier():  # perhaps the key itself, from `--api_key_variable $MY_KEY`
            raise ValueError(
                "`api_key_variable` is not the name of an environment variable. Pass a name, such as OPENAI_API_KEY, "
                "without `$`."
            )
        key = os.environ.get(self.api_key_variable)
        if not key:
            raise ValueError(
                f"`api_key_variable` names the environment variable {self.api_key_variable!r}, which is not set. Set "
                "it, or remove `api_key_variable` if the server requires no key."
            )
        return key
