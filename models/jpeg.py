"""stub"""
def jpeg_scans(data: bytes) -> int:
    return data.count(b"\xff\xda")
