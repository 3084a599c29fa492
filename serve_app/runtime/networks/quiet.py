"""diffusers and transformers, silenced before anything of theirs is loaded.

Otherwise they warn of image processors that are never used here and of casts that they make
themselves while they read a single file, and draw progress bars over the log. Import both from
this module.
"""

import diffusers.models.activations  # with its submodules that are used here
import diffusers.models.attention_processor
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

__all__ = ["diffusers", "transformers"]
