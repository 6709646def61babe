"""A generateContent request: decoded into what matters here, and put into the words that answers are made from."""

import re
from typing import TypeVar

import msgspec

from service.simulator import request
from service.simulator.answering import ForeignModel, asked, turn
from service.simulator.errors import ApiError, invalid
from service.simulator.request import Block, Message, Request, ToolChoice

_NO_SCHEMA = msgspec.Raw(b'{"type":"object"}')
_EMPTY = msgspec.Raw(b"")


class Part(msgspec.Struct, rename="camel"):
    """Words or something else."""

    text: str = ""
    inline_data: msgspec.Raw = _EMPTY
    file_data: msgspec.Raw = _EMPTY
    function_call: msgspec.Raw = _EMPTY
    function_response: msgspec.Raw = _EMPTY

    def block(self) -> Block:
        """As ours; a picture counts like a picture."""
        if bytes(self.inline_data) or bytes(self.file_data):
            return Block("image")
        return Block("text", self.text, input=self.function_call, content=self.function_response)


class Content(msgspec.Struct):
    """One turn."""

    parts: list[Part] = []
    role: str = "user"


class FunctionDeclaration(msgspec.Struct, rename="camel"):
    """A function that the model may call."""

    name: str
    description: str = ""
    parameters: msgspec.Raw = _EMPTY
    parameters_json_schema: msgspec.Raw = _EMPTY

    def tool(self) -> request.Tool:
        """As ours."""
        schema = self.parameters_json_schema if bytes(self.parameters_json_schema) else self.parameters
        return request.Tool(self.name, None, self.description, schema if bytes(schema) else _NO_SCHEMA)


class Tool(msgspec.Struct, rename="camel"):
    """A set of functions; what runs on the server is not looked at."""

    function_declarations: list[FunctionDeclaration] = []


class FunctionCallingConfig(msgspec.Struct, rename="camel"):
    """Whether a function must be called, and which."""

    mode: str = "AUTO"
    allowed_function_names: list[str] = []


class ToolConfig(msgspec.Struct, rename="camel"):
    """Settings of the tools."""

    function_calling_config: FunctionCallingConfig = msgspec.field(default_factory=FunctionCallingConfig)


class ThinkingConfig(msgspec.Struct, rename="camel"):
    """Whether the model thinks, and whether it shows it. It thinks only when asked to, here."""

    include_thoughts: bool = False
    thinking_budget: int | None = None
    thinking_level: str | None = None


class GenerationConfig(msgspec.Struct, rename="camel"):
    """Settings of the answer."""

    max_output_tokens: int | None = None
    candidate_count: int = 1
    stop_sequences: list[str] = []
    response_mime_type: str = ""
    response_schema: msgspec.Raw = _EMPTY
    response_json_schema: msgspec.Raw = _EMPTY
    thinking_config: ThinkingConfig = msgspec.field(default_factory=ThinkingConfig)


class Generate(msgspec.Struct, rename="camel"):
    """The body of generateContent."""

    contents: list[Content] = []
    system_instruction: Content | None = None
    tools: list[Tool] = []
    tool_config: ToolConfig = msgspec.field(default_factory=ToolConfig)
    generation_config: GenerationConfig = msgspec.field(default_factory=GenerationConfig)


class Count(msgspec.Struct, rename="camel"):
    """The body of countTokens: contents, or a whole request."""

    contents: list[Content] = []
    generate_content_request: Generate | None = None

    def request(self) -> Generate:
        """What to count."""
        return self.generate_content_request or Generate(self.contents)


T = TypeVar("T")
_NAMES = {
    name.encode(): camel.encode()
    for kind in (
        Part,
        FunctionDeclaration,
        Tool,
        FunctionCallingConfig,
        ToolConfig,
        ThinkingConfig,
        GenerationConfig,
        Generate,
        Count,
    )
    for name, camel in zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True)
    if name != camel
}
_SNAKE = re.compile(rb'"(%s)"(?=\s*:)' % b"|".join(_NAMES))
_GENERATE, _COUNT = msgspec.json.Decoder(Generate), msgspec.json.Decoder(Count)


def decode(data: bytes) -> Generate:
    """The body of generateContent; raises a 400 that names the field at fault."""
    return _decode(data, _GENERATE)


def decode_count(data: bytes) -> Count:
    """The body of countTokens; raises a 400 that names the field at fault."""
    return _decode(data, _COUNT)


def _decode(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Google takes names in either spelling, and its own SDK sends both. An unescaped name before a colon is a key."""
    try:
        return decoder.decode(_SNAKE.sub(lambda found: b'"%s"' % _NAMES[found[1]], data))
    except msgspec.ValidationError as error:
        where, what = request.place(str(error))
        raise invalid(f"Invalid value at '{where}': {what or 'it is required'}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"Invalid JSON payload received. {error}") from None


def translate(body: Generate, model: ForeignModel) -> Request:
    """As ours; raises the API's 400 for what is well formed but not allowed."""
    if not body.contents:
        raise invalid("* GenerateContentRequest.contents: contents is not specified\n")
    config = body.generation_config
    if config.candidate_count != 1:
        raise invalid("candidateCount: the simulator makes one candidate")
    if config.max_output_tokens is not None and not 0 < config.max_output_tokens <= model.max_output:
        raise invalid(f"maxOutputTokens: supported range is from 1 to {model.max_output}")
    calling = body.tool_config.function_calling_config
    tools = [function.tool() for tool in body.tools for function in tool.function_declarations]
    schema = config.response_json_schema if bytes(config.response_json_schema) else config.response_schema
    return asked(
        model,
        turns(body),
        max_tokens=config.max_output_tokens,
        tools=[] if calling.mode == "NONE" else tools,
        thinks=_thinks(config.thinking_config),
        stop=config.stop_sequences,
        choice=_choice(calling),
        schema=schema if bytes(schema) else None,
    )


def turns(body: Generate) -> list[Message]:
    """The system instruction and the contents."""
    found = (
        [turn("system", [part.block() for part in body.system_instruction.parts])] if body.system_instruction else []
    )
    for index, content in enumerate(body.contents):
        if content.role not in ("user", "model", "function"):
            raise ApiError(400, "INVALID_ARGUMENT", f"contents[{index}].role: Please use a valid role: user, model.")
        found.append(turn(content.role, [part.block() for part in content.parts]))
    return found


def _thinks(config: ThinkingConfig) -> bool:
    return config.include_thoughts or bool(config.thinking_budget) or config.thinking_level not in (None, "MINIMAL")


def _choice(calling: FunctionCallingConfig) -> ToolChoice | None:
    if calling.mode != "ANY":
        return None
    names = calling.allowed_function_names
    return ToolChoice("tool", names[0]) if names else ToolChoice("any")
