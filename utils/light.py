"""open_clip, imported without transformers: a few models alone take their text tower from there, and it is a third of
the time that the import takes. Whatever needs open_clip takes it from here."""
import importlib
import sys

HIDDEN = "transformers" not in sys.modules
if HIDDEN:
    sys.modules["transformers"] = None  # an import of it fails, as if it were not installed
try:
    import open_clip
finally:
    if HIDDEN:
        del sys.modules["transformers"]


def with_transformers() -> None:
    """Give open_clip's text towers of transformers what they need, before a model with such a tower is made."""
    if open_clip.hf_model.transformers is None:
        import transformers
        from transformers import modeling_outputs

        taken = {name: getattr(modeling_outputs, name) for name in (
            "BaseModelOutput", "BaseModelOutputWithPooling", "BaseModelOutputWithPoolingAndCrossAttentions")}
        taken |= {name: getattr(transformers, name) for name in (
            "AutoModel", "AutoTokenizer", "AutoConfig", "PretrainedConfig")}
        vars(importlib.import_module("open_clip.hf_model")).update(taken, transformers=transformers)
