"""The application that runs students: weights in, videos out."""

from infer.engine import Generation, Student, load_student
from infer.files import generate

__all__ = ["Generation", "Student", "generate", "load_student"]
