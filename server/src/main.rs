//! The `cairn-server` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    cairn_server::cli::main()
}
