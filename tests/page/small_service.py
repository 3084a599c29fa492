"""A service that draws small pictures, so that a test waits for none of them."""

from dataclasses import replace

from tests.support.fake_conductor import INFO

SMALL = replace(INFO, models=(replace(INFO.default_model, native_size=256),))
