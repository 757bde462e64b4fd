"""`python -m lite_jax.main`: a run by a configuration; see `lite_jax.cli.program`."""

from absl import flags

from lite_jax.cli import program

flags.adopt_module_key_flags(program)  # so that --help lists them

if __name__ == "__main__":
    program.run()
