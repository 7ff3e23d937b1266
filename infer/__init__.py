"""The application that runs students: weights in, videos out."""

from infer.batch.generate_files import Outcome, SomeFailed, generate, generate_files
from infer.engine import Student, load_student
from infer.network.lora import Lora
from infer.options import Options
from infer.result import Cancelled, Generation, Video

__all__ = [
    "Cancelled",
    "Generation",
    "Lora",
    "Options",
    "Outcome",
    "SomeFailed",
    "Student",
    "Video",
    "generate",
    "generate_files",
    "load_student",
]
