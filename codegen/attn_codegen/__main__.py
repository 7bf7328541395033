# SPDX-License-Identifier: Apache-2.0
"""`python -m attn_codegen`."""

from attn_codegen.cli import main

if __name__ == "__main__":
    main(prog_name="attn-codegen")
