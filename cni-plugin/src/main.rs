//! The executable that the container runtime calls.

use std::io::{self, Read, Write};
use std::process::ExitCode;

/// Longest configuration that is read, in bytes.
const LONGEST_INPUT: u64 = 16 << 20;

fn main() -> ExitCode {
    let variable = |name: &str| std::env::var(name).ok();
    let mut input = Vec::new();
    // What could not be read whole is no JSON, which is then the answer.
    let _ = io::stdin().lock().take(LONGEST_INPUT).read_to_end(&mut input);
    let answer = fairlead_cni::command::run(&variable, &input);
    let mut written = Ok(());
    if let Some(output) = answer.output {
        // In one write: the runtime reads a pipe.
        let text = format!("{output:#}\n");
        let mut stdout = io::stdout().lock();
        written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    }
    if answer.failed || written.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
