//! Running other programs: one environment for all of them, each command shown before it runs.
//!
//! Everything meant for people goes to standard error, so that standard output carries results only.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Attempts of a step that downloads something.
pub const ATTEMPTS_MAX: u32 = 3;

/// Pause between two attempts of such a step.
const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// The repository's root directory.
///
/// # Errors
/// If neither cargo's environment nor the current directory leads to the workspace.
pub fn root() -> Result<PathBuf> {
    if let Some(manifest) = env::var_os("CARGO_MANIFEST_DIR")
        && let Some(parent) = Path::new(&manifest).parent()
        && parent.join("xtask").is_dir()
    {
        return Ok(parent.to_owned());
    }
    let here = env::current_dir().context("cannot tell the current directory")?;
    here.ancestors()
        .find(|dir| dir.join("xtask/Cargo.toml").is_file())
        .map(Path::to_owned)
        .context("not inside the repository: change into it and run `cargo xtask` there")
}

/// A command that runs in the repository's root, without the variables cargo set for this program
/// and with cargo's own programs on the path.
///
/// # Errors
/// As [`root`].
pub fn command(program: &str) -> Result<Command> {
    let mut command = Command::new(program);
    command.current_dir(root()?);
    for (name, _) in env::vars_os() {
        if is_of_this_package(&name) {
            command.env_remove(name);
        }
    }
    let home = cargo_home().map(|home| home.join("bin"));
    let present = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let dirs: Vec<PathBuf> = home
        .into_iter()
        .chain(env::split_paths(&present))
        .chain(system)
        .collect();
    command.env("PATH", env::join_paths(dirs).unwrap_or(present));
    command.stdin(Stdio::null());
    Ok(command)
}

/// Whether cargo set this variable for the package being run: a nested build must not see it.
fn is_of_this_package(name: &OsString) -> bool {
    let name = name.to_string_lossy();
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || ["CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"].contains(&name.as_ref())
}

fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
}

/// cargo, of the pinned toolchain.
///
/// # Errors
/// As [`root`].
pub fn cargo() -> Result<Command> {
    command("cargo")
}

/// The command as a person would type it.
pub fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| {
        let word = word.to_string_lossy();
        if word.contains(' ') {
            format!("'{word}'")
        } else {
            word.into_owned()
        }
    }));
    words.join(" ")
}

/// Runs a command to its end, its output shown on standard error.
///
/// # Errors
/// If it cannot be started or ends without success.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    eprintln!("$ {line}");
    let status = command
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status}); its own words are above");
    }
    Ok(())
}

/// Runs a step that downloads something, up to [`ATTEMPTS_MAX`] times.
///
/// # Errors
/// The last attempt's.
pub fn run_with_retries(make: impl Fn() -> Result<Command>) -> Result<()> {
    let mut attempt = 1;
    loop {
        match run(&mut make()?) {
            Ok(()) => return Ok(()),
            Err(error) if attempt < ATTEMPTS_MAX => {
                eprintln!(
                    "{error:#}\nattempt {attempt} of {ATTEMPTS_MAX}; again in {} s",
                    RETRY_PAUSE.as_secs()
                );
                thread::sleep(RETRY_PAUSE);
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The standard output of a short command, or `None` if it is not there or fails.
pub fn capture(program: &str, arguments: &[&str]) -> Option<String> {
    let output = command(program)
        .ok()?
        .args(arguments)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The directory cargo builds this workspace into.
///
/// # Errors
/// If cargo cannot describe the workspace.
pub fn target_dir() -> Result<PathBuf> {
    let metadata = capture("cargo", &["metadata", "--no-deps", "--format-version", "1"])
        .context("`cargo metadata` failed: run it to see why")?;
    let metadata: serde_json::Value =
        serde_json::from_str(&metadata).context("`cargo metadata` gave no JSON")?;
    metadata["target_directory"]
        .as_str()
        .map(PathBuf::from)
        .context("`cargo metadata` named no target directory")
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether the build runs unattended on a build machine (`CI=true`).
pub fn is_ci() -> bool {
    env::var("CI").is_ok_and(|value| !["", "0", "false"].contains(&value.as_str()))
}

/// Where results go: standard output, or (with `--json`) what was standard output at the start, while all
/// that this program and its children print goes to standard error.
#[derive(Debug)]
pub struct ResultOutput(Option<File>);

impl ResultOutput {
    /// Takes standard output for results alone, if `alone`.
    ///
    /// # Errors
    /// If the descriptors cannot be duplicated.
    pub fn new(alone: bool) -> Result<Self> {
        if !alone {
            return Ok(Self(None));
        }
        let kept = rustix::io::fcntl_dupfd_cloexec(std::io::stdout(), 3)
            .context("cannot keep standard output for the result")?;
        rustix::stdio::dup2_stdout(std::io::stderr())
            .context("cannot send other output to standard error")?;
        Ok(Self(Some(File::from(kept))))
    }

    /// Prints a result.
    ///
    /// # Errors
    /// If nobody reads it any more.
    pub fn print(&self, text: &str) -> Result<()> {
        match &self.0 {
            Some(file) => writeln!(&mut &*file, "{text}"),
            None => writeln!(std::io::stdout(), "{text}"),
        }
        .context("cannot print the result")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nested_build_does_not_inherit_this_packages_variables() {
        for name in ["CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "OUT_DIR"] {
            assert!(is_of_this_package(&name.into()), "{name}");
        }
        for name in ["CARGO_TARGET_DIR", "CARGO_HOME", "CARGO", "PATH"] {
            assert!(!is_of_this_package(&name.into()), "{name}");
        }
    }

    #[test]
    fn a_command_is_shown_as_typed() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo a"]);
        assert_eq!(line(&command), "sh -c 'echo a'");
    }

    #[test]
    fn a_failing_command_is_an_error_that_names_it() {
        let error = run(&mut Command::new("false")).unwrap_err();
        assert!(error.to_string().contains("`false` failed"), "{error}");
    }
}
