//! Running other programs.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Who this process may act as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// It is root.
    Root,
    /// `sudo` works without being asked for a password, or there is a terminal to ask at.
    Sudo,
    /// Neither.
    None,
}

impl Privilege {
    /// Looks at the user id and for `sudo`.
    pub(crate) fn detect() -> Self {
        if output(Command::new("id").arg("-u")).is_some_and(|id| id == "0") {
            return Self::Root;
        }
        let quietly =
            Command::new("sudo").args(["-n", "true"]).stderr(Stdio::null()).stdin(Stdio::null()).status();
        match quietly {
            Ok(status) if status.success() => Self::Sudo,
            // sudo is there but wants a password.
            Ok(_) if std::io::IsTerminal::is_terminal(&std::io::stdin()) => Self::Sudo,
            _ => Self::None,
        }
    }

    /// A command that runs `program` as root.
    pub(crate) fn command(self, program: impl AsRef<OsStr>) -> Result<Command> {
        match self {
            Self::Root => Ok(Command::new(program)),
            Self::Sudo => {
                let mut command = Command::new("sudo");
                command.arg(program);
                Ok(command)
            }
            Self::None => bail!(
                "{:?} needs root: run as root, or install sudo and allow this user to use it",
                program.as_ref()
            ),
        }
    }
}

/// The project's own cargo, in the root of the repository.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace::root());
    without_leftovers(&mut command);
    command
}

/// Takes away what the cargo that runs this process has put into the environment: library paths would
/// make another toolchain load the wrong libraries.
pub(crate) fn without_leftovers(command: &mut Command) {
    command
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("RUSTC")
        .env_remove("RUSTDOC")
        .env_remove("CARGO_MANIFEST_DIR");
}

/// Shows the command, runs it and fails when it does.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("  $ {}", shown(command));
    let status =
        command.stdin(Stdio::null()).status().with_context(|| format!("cannot run {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", shown(command));
    }
    Ok(())
}

/// What the command prints, without surrounding blanks; `None` when it cannot be run or fails.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The command as one would type it, with paths below the repository shortened.
fn shown(command: &Command) -> String {
    let root = format!("{}/", workspace::root().display());
    let mut words = Vec::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            words.push(quoted(&format!("{}={}", name.to_string_lossy(), value.to_string_lossy())));
        }
    }
    let program = Path::new(command.get_program());
    words.push(match (program.is_absolute(), program.file_name()) {
        // rustup's path to the project's own cargo says nothing.
        (true, Some(name)) if name == "cargo" && !program.starts_with("/usr") => "cargo".to_owned(),
        _ => program.display().to_string(),
    });
    words.extend(command.get_args().map(|a| quoted(&a.to_string_lossy())));
    words.join(" ").replace(&root, "")
}

fn quoted(word: &str) -> String {
    if word.contains(char::is_whitespace) { format!("'{word}'") } else { word.to_owned() }
}
