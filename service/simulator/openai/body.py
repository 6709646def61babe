"""Requests to OpenAI: decoded into what matters here, and put into the words that answers are made from."""

from typing import TypeVar

import msgspec

from service.simulator import request
from service.simulator.answering import ForeignModel, asked, turn
from service.simulator.errors import ApiError
from service.simulator.request import Block, Message, Request, ToolChoice

_NO_SCHEMA = msgspec.Raw(b'{"type":"object"}')
_EMPTY = msgspec.Raw(b"")
_INVALID = "invalid_request_error"
_PICTURES = ("image_url", "input_image")


class Part(msgspec.Struct):
    """A part of a message: words or something else."""

    type: str
    text: str = ""

    def block(self) -> Block:
        """As ours; a picture counts like a picture."""
        return Block("image") if self.type in _PICTURES else Block("text", self.text)


Content = str | list[Part] | None


class ChatMessage(msgspec.Struct):
    """One message of a chat."""

    role: str
    content: Content = None
    tool_calls: msgspec.Raw = _EMPTY

    def turn(self) -> Message:
        """As ours."""
        return turn(self.role, [*_blocks(self.content), Block("text", input=self.tool_calls)])


class Function(msgspec.Struct):
    """A function that the model may call."""

    name: str = ""
    description: str | None = None
    parameters: msgspec.Raw = _EMPTY

    def tool(self) -> request.Tool:
        """As ours."""
        schema = self.parameters if bytes(self.parameters) not in (b"", b"null") else _NO_SCHEMA
        return request.Tool(self.name, None, self.description or "", schema)


class ChatTool(msgspec.Struct):
    """A tool of a chat; only functions are called here."""

    type: str
    function: Function | None = None


class Schema(msgspec.Struct):
    """The shape that an answer must have."""

    schema: msgspec.Raw = _EMPTY


class ResponseFormat(msgspec.Struct):
    """The form of an answer."""

    type: str
    json_schema: Schema | None = None


class StreamOptions(msgspec.Struct):
    """What a stream shall hold."""

    include_usage: bool = False


class Named(msgspec.Struct):
    """The tool that must be called, as either API names it."""

    type: str
    name: str = ""
    function: Function | None = None


Choice = str | Named | None


class Chat(msgspec.Struct):
    """The body of POST /v1/chat/completions."""

    model: str
    messages: list[ChatMessage]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = 1
    stop: str | list[str] | None = None
    tools: list[ChatTool] | None = None
    tool_choice: Choice = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None

    def translate(self, model: ForeignModel) -> Request:
        """As ours; raises the API's 400 for what is well formed but not allowed."""
        if not self.messages:
            raise bad("messages", "Expected an array with minimum length 1, but got an empty array instead.")
        if self.n not in (None, 1):
            raise bad("n", "The simulator makes one choice.")
        form = self.response_format and self.response_format.json_schema
        tools = [tool.function.tool() for tool in self.tools or () if tool.function]
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        return asked(
            model,
            [message.turn() for message in self.messages],
            max_tokens=_positive("max_completion_tokens", self.max_completion_tokens or self.max_tokens),
            tools=[] if self.tool_choice == "none" else tools,
            thinks=self.reasoning_effort not in (None, "none", "minimal"),
            stop=stop,
            choice=_choice(self.tool_choice, bool(tools)),
            schema=form.schema if form and bytes(form.schema) else None,
        )


class Item(msgspec.Struct):
    """One item of the input of a response: a message, a call, its output, reasoning."""

    type: str = "message"
    role: str = "assistant"
    content: Content = None
    arguments: str = ""
    output: msgspec.Raw = _EMPTY

    def turn(self) -> Message:
        """As ours."""
        return turn(self.role, [*_blocks(self.content), Block("text", self.arguments, content=self.output)])


class Reasoning(msgspec.Struct):
    """Whether the model reasons, and whether it tells."""

    effort: str | None = None
    summary: str | None = None


class TextFormat(msgspec.Struct):
    """The form of an answer."""

    type: str
    schema: msgspec.Raw = _EMPTY


class Text(msgspec.Struct):
    """Settings of the text."""

    format: TextFormat | None = None


class ResponseTool(Function):
    """A tool of a response; only functions are called here."""

    type: str = ""


class Respond(msgspec.Struct):
    """The body of POST /v1/responses."""

    model: str
    input: str | list[Item]
    instructions: str | None = None
    stream: bool | None = False
    max_output_tokens: int | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Choice = None
    reasoning: Reasoning | None = None
    text: Text | None = None
    previous_response_id: str | None = None

    def translate(self, model: ForeignModel) -> Request:
        """As ours; raises the API's 400 for what is well formed but not allowed."""
        if self.previous_response_id:
            message = f"Previous response with id '{self.previous_response_id}' not found."
            raise bad("previous_response_id", message, "previous_response_not_found")
        items = [Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        system = [turn("system", [Block("text", self.instructions)])] if self.instructions else []
        tools = [tool.tool() for tool in self.tools or () if tool.type == "function"]
        form = self.text and self.text.format
        return asked(
            model,
            system + [item.turn() for item in items],
            max_tokens=_positive("max_output_tokens", self.max_output_tokens),
            tools=[] if self.tool_choice == "none" else tools,
            thinks=bool(self.reasoning and self.reasoning.effort not in (None, "none", "minimal")),
            choice=_choice(self.tool_choice, bool(tools)),
            schema=form.schema if form and bytes(form.schema) else None,
        )


T = TypeVar("T", Chat, Respond)


def decode(data: bytes, kind: type[T]) -> T:
    """`data` as `kind`; raises a 400 that names the field, as `messages[0].role`, where it is wrong."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        where, what = request.place(str(error))
        if not what:
            message = f"Missing required parameter: '{where}'."
            raise bad(where, message, "missing_required_parameter") from None
        raise bad(where, f"Invalid type for '{where}': {what}.", "invalid_type") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"We could not parse the JSON body of your request. {error}"
        raise ApiError(400, _INVALID, message) from None


def bad(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """A 400 that names a field."""
    return ApiError(400, _INVALID, message, code=code, param=param)


def _blocks(content: Content) -> list[Block]:
    if isinstance(content, str):
        return [Block("text", content)]
    return [part.block() for part in content or ()]


def _positive(name: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise bad(name, f"Invalid '{name}': integer below minimum value.", "integer_below_min_value")
    return value


def _choice(choice: Choice, any_tools: bool) -> ToolChoice | None:
    if isinstance(choice, Named):
        return ToolChoice("tool", choice.function.name if choice.function else choice.name)
    return ToolChoice("any") if choice == "required" and any_tools else None
