"""Videos as files; the work is in the library, because training writes samples with it too."""

from lightx2v_sgmd.video import check_writable, contact_sheet, read_video, write_video

__all__ = ["check_writable", "contact_sheet", "read_video", "write_video"]
