"""A client's request, and the checks that turn it into a job. Imports no PyTorch.

Names of fields are those of OpenAI's videos API and of the engines that extended it (vLLM-Omni,
SGLang).
"""

from __future__ import annotations

import difflib
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infer.serve.jobs import Wanted
from infer.serve.options import Served
from lightx2v_sgmd.files.prompts import prompt_problem
from lightx2v_sgmd.system.errors import UserError, short_line
from lightx2v_sgmd.untrusted.json_text import Limits, parse_json

_MOST_SEED: Final = 2**63 - 1
_SIZE: Final = r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"
_EXTRA: Final = ("seed", "width", "height", "num_frames", "fps")
BODY: Final = Limits(size=2**24, values=1_000, depth=8, unique=True)
"""Limits of a JSON body; the server's own limit in bytes is never higher."""

_STEPS: Final = ("num_inference_steps", "num_steps", "steps", "sample_steps", "infer_steps")
_GUIDANCE: Final = (
    *("guidance_scale", "guidance_scale_2", "true_cfg_scale", "cfg_scale", "guidance"),
    *("sample_guide_scale", "embedded_guidance_scale"),
)
_SHIFT: Final = ("flow_shift", "sample_shift", "shift")
_NEGATIVE: Final = ("negative_prompt", "negative_prompts")
_IMAGES: Final = (
    *("image_reference", "video_reference", "audio_reference"),
    *("control_reference", "source_video", "image", "image_url", "reference_url"),
)
_LORAS: Final = ("loras", "lora_path", "lora_name")
_SWITCHES: Final = (
    *("generate_sound", "enable_frame_interpolation", "enable_teacache", "preencode_mp4"),
    "rollout",
)
"""Abilities of other servers, which their clients may send as switched off."""
_CHECKED: Final = {*_STEPS, *_GUIDANCE, *_SHIFT, *_NEGATIVE, *_IMAGES, *_LORAS, *_SWITCHES}

_Pixels = Annotated[int, Field(ge=1, le=2**15)]


class RequestProblem(Exception):
    """A request that is refused: one line for the client.

    Attributes:
        status: The HTTP status.
        kind: The error's type in the answer.
    """

    def __init__(
        self, message: str, status: int = 400, kind: str = "invalid_request_error"
    ) -> None:
        super().__init__(short_line(message, 500))
        self.status, self.kind = status, kind


class ImageUrl(BaseModel):
    """An image inside a request."""

    model_config = ConfigDict(extra="forbid")

    image_url: str = Field(description="data:image/png;base64,... (or jpeg, webp).")


class LoraChoice(BaseModel):
    """A LoRA of the server's folder, as vLLM-Omni's clients name it."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=100, description="The LoRA's name.")
    scale: float = Field(1.0, description="The adapters' strength; a student's steps need 1.")


class VideoRequest(BaseModel):
    """A video to make. Everything but the prompt may be left out."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, description="The text that the video is made from.")
    model: str | None = Field(
        None, description="The name of a served student; default the first of /v1/models."
    )
    seconds: str | float | None = Field(
        None,
        description="Length of the video; the nearest number of frames that the model can make.",
    )
    size: str | None = Field(None, pattern=_SIZE, description="WIDTHxHEIGHT in pixels.")
    width: _Pixels | None = Field(None, description="In pixels; default as trained.")
    height: _Pixels | None = Field(None, description="In pixels; default as trained.")
    num_frames: Annotated[int, Field(ge=1, le=2**16)] | None = Field(
        None, description="Number of frames, 4k + 1 for most models; default as trained."
    )
    fps: Annotated[float, Field(ge=0.1, le=1000, allow_inf_nan=False)] | None = Field(
        None, description="Frames per second of the file; default that of the teacher's videos."
    )
    seed: Annotated[int, Field(ge=0, le=_MOST_SEED)] | None = Field(
        None, description="Seed of the noise; the same seed gives the same video. Default random."
    )
    lora: Annotated[str, Field(max_length=100)] | LoraChoice | None = Field(
        None,
        description="The name of a LoRA of the server's folder, or an object with the name; a form "
        "may carry the object as JSON text.",
    )
    input_reference: str | ImageUrl | None = Field(
        None,
        description="Image that the video starts from, for students that take one: a file of a "
        "form, or a data URL (data:image/png;base64,...). PNG, JPEG or WebP.",
    )
    user: str | None = Field(None, max_length=512, description="Accepted, and not kept.")
    extra_params: dict[str, Any] | str | None = Field(
        None,
        description="Object, or its JSON text, with any of " + ", ".join(_EXTRA) + ".",
    )


def pick(models: Sequence[Served], name: object) -> Served:
    """The student that a request names; the first if it names none.

    Raises:
        RequestProblem: it is not served here (404).
    """
    if not isinstance(name, str) or not name:
        return models[0]
    for served in models:
        if served.name == name:
            return served
    names = ", ".join(repr(served.name) for served in models[:20])
    raise RequestProblem(
        f"model: {name[:80]!r} is not served here; this server has {names}", status=404
    )


def read_request(
    values: Mapping[str, Any], models: Sequence[Served], *, form: bool
) -> VideoRequest:
    """Reads the fields of a request.

    Args:
        values: The fields by name.
        models: The served students.
        form: True if the values are text, as a form's are.

    Raises:
        RequestProblem: names the field, what is wrong and what to do.
    """
    served = pick(models, values.get("model"))
    refuse_what_a_student_has_not(values, served)
    values = {key: value for key, value in values.items() if key not in _CHECKED}
    if "lora" in values:
        values["lora"] = _lora_of(values["lora"])
    known = list(VideoRequest.model_fields)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key[:60], known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known fields are {', '.join(known)}"
            raise RequestProblem(f"{key[:60]}: is an unknown field; {hint}")
    try:
        request = VideoRequest.model_validate(dict(values), strict=not form)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = str(first["loc"][0])
        raise RequestProblem(f"{where}: {_plain(first['msg'])}") from None
    extra = _extra_params(request.extra_params)
    if not extra:
        return request
    refuse_what_a_student_has_not(extra, served, "extra_params.")
    extra = {key: value for key, value in extra.items() if key not in _CHECKED}
    for key in extra:
        if key not in _EXTRA:
            raise RequestProblem(
                f"extra_params.{key[:60]}: is unknown; this server knows {', '.join(_EXTRA)}"
            )
        if values.get(key) is not None:
            raise RequestProblem(f"extra_params.{key}: is also given outside; give one of the two")
    given = {key: value for key, value in values.items() if key not in (*extra, "extra_params")}
    outer = request.model_dump(include=set(given))
    return read_request({**outer, **extra}, models, form=False)


def refuse_what_a_student_has_not(
    values: Mapping[str, Any], served: Served, where: str = ""
) -> None:
    """Refuses other steps, guidance, a negative prompt, images and LoRAs, and says why.

    Values that ask for what the student does anyway are taken: its own number of steps, guidance 1,
    an empty negative prompt.
    """
    for key, value in values.items():
        if value is None or value == "":
            continue
        name = f"{where}{key}"
        if key in _STEPS and not _equals(value, served.steps):
            raise RequestProblem(
                f"{name}: this student was distilled for exactly {served.steps} steps, and other "
                "steps give blur; leave it out"
            )
        if key in _GUIDANCE and not _equals(value, 1):
            raise RequestProblem(
                f"{name}: a distilled student has learned its teacher's guidance and runs without "
                "any; leave it out"
            )
        if key in _SHIFT and not _equals(value, served.shift):
            raise RequestProblem(
                f"{name}: this student was distilled for flow shift {served.shift:g}; leave it out"
            )
        if key in _NEGATIVE:
            raise RequestProblem(
                f"{name}: works through guidance, which a distilled student has none of, its "
                "teacher's negative prompt is learned; say in the prompt what the video shows"
            )
        if key in _SWITCHES and value is not False and str(value).lower() not in ("false", "0"):
            raise RequestProblem(f"{name}: this server has no such thing; leave it out")
        if key in _IMAGES:
            remedy = "leave it out" if served.takes_image == "never" else "use input_reference"
            raise RequestProblem(f"{name}: is not read by this server; {remedy}")
        if key in _LORAS:
            raise RequestProblem(
                f"{name}: this server loads LoRAs of its own folder alone; give the name of one as "
                "lora"
            )


def settle(
    request: VideoRequest, models: Sequence[Served], most_prompt: int, image: str | None = None
) -> Wanted:
    """Fills in what a request leaves open, and checks that the model can make it.

    Args:
        request: The request.
        models: The served students.
        most_prompt: The most characters of a prompt.
        image: The sha256 of the image that comes with it.

    Raises:
        RequestProblem: the model is another one (404), or the prompt or size cannot be made.
    """
    served = pick(models, request.model)
    lora = request.lora.name if isinstance(request.lora, LoraChoice) else request.lora or None
    if lora not in (None, *served.loras):
        names = ", ".join(served.loras[:20]) or "none; start it with --lora-folder or --lora"
        raise RequestProblem(
            f"lora: {lora!r} is not served with {served.name!r} here; it has {names}"
        )
    check_image_wanted(served, image is not None)
    prompt = request.prompt.strip()
    if not prompt:
        raise RequestProblem("prompt: is empty; say what the video shows")
    if len(prompt) > most_prompt:
        raise RequestProblem(
            f"prompt: has {len(prompt):,} characters, more than {most_prompt:,}; shorten it"
        )
    if problem := prompt_problem(prompt):
        raise RequestProblem(f"prompt: {problem}; shorten or mend it")
    fps = served.fps if request.fps is None else request.fps
    height, width, num_frames = _size(request, served, fps)
    try:
        served.rules.latent_shape(height, width, num_frames)
    except UserError as error:
        raise RequestProblem(str(error).removeprefix("video.")) from None
    if height * width * num_frames > served.most_pixels:
        raise RequestProblem(
            f"size: {width}x{height} with {num_frames} frames is {height * width * num_frames:,} "
            f"pixels, more than the {served.most_pixels:,} of this server; ask for a smaller or "
            "shorter video"
        )
    seed = secrets.randbelow(2**31) if request.seed is None else request.seed
    return Wanted(served.name, prompt, seed, height, width, num_frames, fps, lora, image)


def check_image_wanted(served: Served, given: bool) -> None:
    """Raises if a student needs an image and there is none, or takes none and there is one.

    Raises:
        RequestProblem: says so.
    """
    if given and served.takes_image == "never":
        raise RequestProblem(
            "input_reference: this student makes videos from text alone; leave it out"
        )
    if not given and served.takes_image == "always":
        raise RequestProblem(
            "input_reference: is missing, and this student starts videos from an image; send a "
            "PNG, JPEG or WebP file in a form, or a data URL"
        )


def parse_body(body: bytes) -> dict[str, Any]:
    """The fields of a JSON body.

    Raises:
        RequestProblem: it is no JSON object.
    """
    return _object(body, "body")


def _size(request: VideoRequest, served: Served, fps: float) -> tuple[int, int, int]:
    """Height, width and frames: as asked for, else as trained."""
    width, height = request.width, request.height
    if request.size is not None:
        asked_width, asked_height = map(int, request.size.split("x"))
        if width not in (None, asked_width) or height not in (None, asked_height):
            raise RequestProblem(
                f"size: {request.size} is not the width and height that are given as well; give "
                "one of the two"
            )
        width, height = asked_width, asked_height
    num_frames = request.num_frames
    if request.seconds is not None:
        nearest = served.rules.nearest_frames(_seconds(request.seconds) * fps)
        if num_frames not in (None, nearest):
            raise RequestProblem(
                f"seconds: {request.seconds} at {fps:g} frames per second are {nearest} frames, not"
                f" the {num_frames} of num_frames; give one of the two"
            )
        num_frames = nearest
    trained = served.trained or (None, None, None)
    chosen = tuple(
        own if asked is None else asked
        for asked, own in zip((height, width, num_frames), trained, strict=True)
    )
    for name, value in zip(("height", "width", "num_frames"), chosen, strict=True):
        if value is None:
            raise RequestProblem(
                f"{name}: is needed, since the weights do not say what they were trained for"
            )
    return chosen  # type: ignore[return-value]


def _seconds(value: str | float) -> float:
    try:
        number = float(value)
        if not 0 < number <= 3600:
            raise ValueError
    except ValueError:
        raise RequestProblem(
            f"seconds: {str(value)[:40]!r} is not a number of seconds up to 3600"
        ) from None
    return number


def _extra_params(value: dict[str, Any] | str | None) -> dict[str, Any]:
    if isinstance(value, str):
        return _object(value, "extra_params") if value.strip() else {}
    return value or {}


def _lora_of(value: Any) -> Any:
    """A request's LoRA, whose object may be JSON text.

    Raises:
        RequestProblem: the object has no name, or asks for more.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = _object(value, "lora")
    if isinstance(value, dict):
        for key in value:
            if key not in LoraChoice.model_fields:
                raise RequestProblem(
                    f"lora.{key[:60]}: is not read; this server loads LoRAs of its own folder "
                    "alone; give the name of one"
                )
        if not _equals(value.get("scale", 1), 1):
            raise RequestProblem("lora.scale: LoRAs are served at strength 1; leave it out")
        if not value.get("name"):
            raise RequestProblem("lora.name: is missing; give the name of a LoRA")
        value = {"name": value["name"]}
    return value


def _object(text: bytes | str, name: str) -> dict[str, Any]:
    try:
        found = parse_json(text, BODY)
    except ValueError as error:
        raise RequestProblem(f"{name}: is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise RequestProblem(f'{name}: is not a JSON object; send one, such as {{"prompt": "..."}}')
    return found


def _equals(value: Any, number: float) -> bool:
    if isinstance(value, bool):
        return False
    try:
        return float(value) == number
    except (TypeError, ValueError, OverflowError):
        return False


def _plain(message: str) -> str:
    """A message of pydantic's as the end of a sentence of ours."""
    text = re.sub(r"^Input should", "should", message).replace("Field required", "is required")
    if "match pattern" in text:
        text = "is not WIDTHxHEIGHT in pixels, such as 832x480"
    return f"{text[0].lower()}{text[1:]}"
