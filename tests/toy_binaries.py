"""One trigram model in five of KenLM's binary forms, for tests on machines where its programs are not built.

Made of `ARPA` with `build_binary [OPTIONS] TYPE` of KenLM 0.3.0; `write` puts them into files.
"""

import base64
import zlib
from pathlib import Path

ARPA = """\\data\\
ngram 1=5
ngram 2=4
ngram 3=2

\\1-grams:
-2.0\t<unk>\t0
-99\t<s>\t-0.5
-1.0\t</s>\t0
-0.5\ta\t-0.25
-0.75\tb\t-0.125

\\2-grams:
-0.25\t<s> a\t-0.5
-0.375\ta b\t-0.25
-0.5\tb a\t-0.125
-0.5\tb </s>\t0

\\3-grams:
-0.125\t<s> a b
-0.25\ta b a

\\end\\
"""
# Name -> (options of build_binary, its output: base64 of zlib).
BINARIES = {
    "probing": (
        "probing",
        "eNrLzU0sUMjJVcgoKSmw0tfPzkhNTMtMzUnRS87P1U/OT0lVSMsvyk0sUShLLSrOzM9TMOViQIAGeyCxnxFI/AcCkAgjVIYZTB6w"
        "RxZjhdIsUJqJARWA5AvqFPdatpWC9QhmZ1++JC7OzsyAG3DlfP9YW/wgG2SWuZbWpNo/3a9YMJUdADmWgeHYIZB7oe4G8hmAdMM+"
        "BgYHEH8fTDHHJ6aMlo3GwkBtdiD5xqK3H2qra1ohahn2r+m9LcKcmLYGoh+hDxfQbDO/sOdQswLEboYGtS/tfH9sJ+aB9DoILX+u"
        "tUPvFNRsOLApzcu2Y7ApBmJ9IJHIkMQAAAUNUmA=",
    ),
    "trie": (
        "trie",
        "eNrLzU0sUMjJVcgoKSmw0tfPzkhNTMtMzUnRS87P1U/OT0lVSMsvyk0sUShLLSrOzM9TMOViQIAGeyCxnxFI/AcCkAgjVIYZTB6w"
        "Z4KKgTArVI4FSjMhmQQTK6hT3GvZVsogmJ19+ZK4ODtXzvePtcUPss21tCbV/ul+haTlAMgBCO6xQyC3IMkD2Q37kNwKkmtA2OkA"
        "4u9jZkAFLAzYAdD9X4D4jxPQDHkg1gcq/AHylBoDQwJQYEE+TCUHA8J7X4BePsCObI5NaV62HYNNsR1DIoONPpBKYgAAeNk8rw==",
    ),
    "quantised": (
        "-q 2 -b 2 trie",
        "eNrLzU0sUMjJVcgoKSmw0tfPzkhNTMtMzUnRS87P1U/OT0lVSMsvyk0sUShLLSrOzM9TMOViQIAGeyCxnxFI/AcCkAgjVIYZTB6w"
        "Z4aKgTArVI4FSjMhmQQTK6hT3GvZVsogmJ19+ZK4ODtXzvePtcUPss21tCbV/ul+BVPPxATXvR+CD+wDumcfyFEIcQeQ2H+IOFgO"
        "hA8gqQGCY4egZiCZB1YL8yNIrgHhVgcQfx8zAypgYcAOCi0ELrEJwHhacG02pXnZdgw2xXYMiQw2+kAqiQEA/ZJBtw==",
    ),
    "compressed": (
        "-a 255 trie",
        "eNrLzU0sUMjJVcgoKSmw0tfPzkhNTMtMzUnRS87P1U/OT0lVSMsvyk0sUShLLSrOzM9TMOViQIAGeyCxnxFI/AcCkAgjVIYZTB6w"
        "Z4GKgTArVI4FSjMhmQQTK6hT3GvZVsogmJ19+ZK4ODtXzvePtcUPss21tCbV/ul+haTlAMgBCO6xQyC3IMkD2Q37kNwKkmtA2OkA"
        "4u9jZkAFLAw4wH+sokBvfQHiP05Ao+WBWB+o/wfIr2oMDAlAgQX5MJUcDAhffwGGxAF2ZHNsSvOy7Rhsiu0YEhls9IFUEgMAPtk9"
        "sA==",
    ),
    "both": (
        "-q 2 -b 2 -a 255 trie",
        "eNrLzU0sUMjJVcgoKSmw0tfPzkhNTMtMzUnRS87P1U/OT0lVSMsvyk0sUShLLSrOzM9TMOViQIAGeyCxnxFI/AcCkAgjVIYZTB6w"
        "Z4WKgTArVI4FSjMhmQQTK6hT3GvZVsogmJ19+ZK4ODtXzvePtcUPss21tCbV/ul+BVPPxATXvR+CD+wDumcfyFEIcQeQ2H+IOFgO"
        "hA8gqQGCY4egZiCZB1YL8yNIrgHhVgcQfx8zAypgYcAB/mMVLbQQuMQmAONpwU2zKc3LtmOwKbZjSGSw0QdSSQwAldJCuA==",
    ),
}


def content(name: str) -> bytes:
    return zlib.decompress(base64.b64decode(BINARIES[name][1]))


def write(folder: Path, name: str) -> Path:
    path = folder / f"{name}.binary"
    path.write_bytes(content(name))
    return path
