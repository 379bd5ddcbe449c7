//! A PostgreSQL server of a test's own, from Debian's package.
//!
//! Each [`Server`] has its data and its socket in a directory of its own, listens on no port, and takes every local user as the
//! superuser `davy`: nothing here is for production. It ends when the [`Server`] is dropped, and also when the test's process
//! is killed (`PR_SET_PDEATHSIG`, set by setpriv(1)). Other servers on the machine are never touched.
//!
//! PostgreSQL refuses to run as root (`postmaster.c`), so root starts it as Debian's user `postgres`. Databases sort by a
//! language's rules (ICU, `en`), not by bytes: whoever wants an order must say which.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Where Debian keeps each major version's programs (package `postgresql-common`).
const VERSIONS: &str = "/usr/lib/postgresql";
/// Whom root runs the server as; made by Debian's package.
const USER: &str = "postgres";
/// The superuser of a test's server.
const ROLE: &str = "davy";
/// The port that names the socket's file; nothing listens on it.
const PORT: u16 = 5432;
/// How long a server may take to start: a busy machine starts many programs.
const START_MAX: Duration = Duration::from_secs(120);
const START_INTERVAL: Duration = Duration::from_millis(20);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Debian's package is absent on a build machine (`CI` is set), where nothing may be skipped.
    #[error("{ABSENT}; on a build machine (CI is set) it may not be: apt-get install postgresql")]
    Absent,
    /// Root has nobody to run it as.
    #[error("there is no user {USER} to run the server as: reinstall Debian's postgresql")]
    NoUser,
    /// A file of the server cannot be made.
    #[error("{path} cannot be made: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program}: {why}")]
    Program {
        /// Which.
        program: String,
        /// Its words.
        why: String,
    },
}

/// Why the tests are skipped where there is no server, as a sentence.
pub const ABSENT: &str = "Debian's postgresql is not installed";

/// Says, past the test harness's capturing, that a test did not run. `cargo xtask test` counts such lines.
pub fn skipped(why: &str) {
    // What cannot be written to stdout cannot be said elsewhere.
    let _ = writeln!(io::stdout(), "SKIPPED: {why}");
}

/// The server that the tests of one process share; it ends with the last of them.
static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());

/// A running server.
pub struct Server {
    bin: PathBuf,
    dir: TempDir,
    databases: AtomicU64,
    keeper: Keeper,
}

impl Server {
    /// Starts a server; none where Debian's package is absent.
    ///
    /// # Errors
    /// [`Error`], one sentence; [`Error::Absent`] if `CI` is set.
    pub fn start() -> Result<Option<Self>, Error> {
        match newest(Path::new(VERSIONS)) {
            Some(bin) => Self::start_from(bin).map(Some),
            None if std::env::var_os("CI").is_some() => Err(Error::Absent),
            None => Ok(None),
        }
    }

    /// The server that all tests of this process share, started if there is none.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn shared() -> Result<Option<Arc<Self>>, Error> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = shared.upgrade() {
            return Ok(Some(server));
        }
        let started = Self::start()?.map(Arc::new);
        if let Some(server) = &started {
            *shared = Arc::downgrade(server);
        }
        Ok(started)
    }

    fn start_from(bin: PathBuf) -> Result<Self, Error> {
        let dir = tempfile::Builder::new()
            .prefix("davy-postgres-")
            .tempdir()
            .map_err(|source| Error::File {
                path: std::env::temp_dir(),
                source,
            })?;
        let user = User::of_this_process()?;
        user.give(dir.path())?;
        let data = dir.path().join("data");
        let mut initdb = user.command(&bin.join("initdb"));
        initdb.arg("--pgdata").arg(&data);
        initdb.args([
            "--username",
            ROLE,
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--locale-provider=icu",
            "--icu-locale=en",
            "--no-sync",
        ]);
        finished(&mut initdb)?;
        let log = dir.path().join("log");
        let file = fs::File::create(&log).map_err(|source| Error::File {
            path: log.clone(),
            source,
        })?;
        let mut postgres = user.command(&bin.join("postgres"));
        postgres.arg("-D").arg(&data).arg("-k").arg(dir.path());
        for setting in [
            "listen_addresses=".to_owned(),
            format!("port={PORT}"),
            "fsync=off".to_owned(),
            "max_connections=100".to_owned(),
        ] {
            postgres.args(["-c", &setting]);
        }
        postgres.stdin(Stdio::null()).stdout(Stdio::null());
        postgres.stderr(file);
        let server = Self {
            bin,
            keeper: Keeper::start(postgres)?,
            dir,
            databases: AtomicU64::new(0),
        };
        server.await_ready(&log)?;
        Ok(server)
    }

    fn await_ready(&self, log: &Path) -> Result<(), Error> {
        let deadline = Instant::now() + START_MAX;
        loop {
            let asked = self.client("pg_isready").arg("--quiet").status();
            if asked.is_ok_and(|status| status.success()) {
                return Ok(());
            }
            if self.keeper.has_ended() || Instant::now() > deadline {
                return Err(Error::Program {
                    program: "postgres".to_owned(),
                    why: fs::read_to_string(log).unwrap_or_default(),
                });
            }
            std::thread::sleep(START_INTERVAL);
        }
    }

    /// A client program that talks to this server.
    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.arg("--host").arg(self.dir.path());
        command.args(["--port", &PORT.to_string(), "--username", ROLE]);
        command.env_remove("PGOPTIONS").stdin(Stdio::null());
        command
    }

    /// Makes an empty database; returns its name.
    ///
    /// # Errors
    /// The server's words.
    pub fn database(&self) -> Result<String, Error> {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("davy_{number}");
        self.run("postgres", &format!("CREATE DATABASE {name}"))?;
        Ok(name)
    }

    /// The directory of the server's socket.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.dir.path()
    }

    /// The server's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join(format!(".s.PGSQL.{PORT}"))
    }

    /// Names a database for a client that comes as the superuser.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        url_at(self.dir.path(), database, ROLE)
    }

    /// Runs SQL in a database, each statement on its own; returns what it printed, a row a line.
    ///
    /// # Errors
    /// The server's words.
    pub fn run(&self, database: &str, sql: &str) -> Result<String, Error> {
        let mut psql = self.client("psql");
        psql.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only"]);
        psql.args(["--set", "ON_ERROR_STOP=1", "--dbname", database]);
        finished(psql.args(["--command", sql]))
    }
}

/// Names a database behind the socket in `directory`.
#[must_use]
pub fn url_at(directory: &Path, database: &str, role: &str) -> String {
    format!(
        "postgres:///{database}?host={}&port={PORT}&user={role}",
        directory.display()
    )
}

/// The programs of the newest version that has all of them.
fn newest(versions: &Path) -> Option<PathBuf> {
    let mut found: Vec<(u64, PathBuf)> = fs::read_dir(versions)
        .ok()?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str()?.parse().ok()?;
            let bin = entry.path().join("bin");
            let whole = ["initdb", "postgres", "psql", "pg_isready"];
            (whole.iter().all(|program| bin.join(program).is_file())).then_some((version, bin))
        })
        .collect();
    found.sort_unstable();
    found.pop().map(|(_, bin)| bin)
}

/// Whom the server runs as.
enum User {
    /// Whoever runs the test.
    Same,
    /// Another one, because the test runs as root.
    Other { uid: u32, gid: u32 },
}

impl User {
    fn of_this_process() -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Same);
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let (uid, gid) = ids(&passwd, USER).ok_or(Error::NoUser)?;
        Ok(Self::Other { uid, gid })
    }

    /// Makes a directory theirs, and lets others look up names in it: the test's own user connects to the socket there.
    fn give(&self, path: &Path) -> Result<(), Error> {
        let failed = |source| Error::File {
            path: path.to_owned(),
            source,
        };
        fs::set_permissions(path, fs::Permissions::from_mode(0o711)).map_err(failed)?;
        match self {
            Self::Same => Ok(()),
            Self::Other { uid, gid } => chown(path, Some(*uid), Some(*gid)).map_err(failed),
        }
    }

    /// `program`, run as this user, and ended when the thread that starts it ends.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig=QUIT");
        if let Self::Other { uid, gid } = self {
            command.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
            command.arg("--clear-groups");
        }
        command.arg("--").arg(program).current_dir("/");
        command
    }
}

/// User and group of a name in passwd(5).
fn ids(passwd: &str, name: &str) -> Option<(u32, u32)> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        Some((uid, fields.next()?.parse().ok()?))
    })
}

/// The thread that starts the server and sees it end: the kernel signals the server when *this thread* is gone, so it must
/// live as long as the server is wanted.
struct Keeper {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    fn start(mut command: Command) -> Result<Self, Error> {
        let failed = |source: io::Error| Error::Program {
            program: "setpriv".to_owned(),
            why: source.to_string(),
        };
        let (stop, stopped) = mpsc::channel::<()>();
        let (started, outcome) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("postgres".to_owned())
            .spawn(move || match command.spawn() {
                Ok(child) => {
                    // Whoever waits for it is there until it has come.
                    let _ = started.send(Ok(()));
                    keep(child, &stopped);
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            })
            .map_err(failed)?;
        let keeper = Self {
            stop: Some(stop),
            thread: Some(thread),
        };
        match outcome.recv() {
            Ok(outcome) => outcome.map_err(failed)?,
            Err(error) => return Err(failed(io::Error::other(error))),
        }
        Ok(keeper)
    }

    fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

/// Until it ends by itself, or is to end.
fn keep(mut child: Child, stopped: &mpsc::Receiver<()>) {
    while let Ok(None) = child.try_wait() {
        match stopped.recv_timeout(START_INTERVAL) {
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    // At once, without a checkpoint: its data go with it. Its children end with it (PostgreSQL, "Shutting Down the Server").
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
        && let Ok(None) = child.try_wait()
    {
        let _ = kill_process(pid, Signal::QUIT);
    }
    let _ = child.wait();
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

/// Runs a program to its end; what it printed.
fn finished(command: &mut Command) -> Result<String, Error> {
    let why = match command.output() {
        Ok(output) if output.status.success() => {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Error::Program {
        program: format!("{command:?}"),
        why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_answers_and_is_gone_when_dropped() {
        let Some(server) = Server::start().unwrap() else {
            return skipped(ABSENT);
        };
        let database = server.database().unwrap();
        assert_eq!(server.run(&database, "SELECT 6 * 7").unwrap(), "42");
        assert!(server.run(&database, "SELECT no_such_column").is_err());
        let (directory, socket) = (server.directory().to_owned(), server.socket());
        let pids = fs::read_to_string(directory.join("data/postmaster.pid")).unwrap();
        let pid: i32 = pids.lines().next().unwrap().parse().unwrap();
        drop(server);
        assert!(!directory.exists() && !socket.exists());
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{pid} lives");
    }

    #[test]
    fn the_newest_whole_version_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(newest(dir.path()), None);
        for (version, programs) in [
            ("9", &["initdb", "postgres", "psql", "pg_isready"][..]),
            ("15", &["initdb", "postgres", "psql", "pg_isready"]),
            ("17", &["psql"]),
        ] {
            let bin = dir.path().join(version).join("bin");
            fs::create_dir_all(&bin).unwrap();
            for program in programs {
                fs::write(bin.join(program), "").unwrap();
            }
        }
        assert_eq!(newest(dir.path()), Some(dir.path().join("15/bin")));
    }

    #[test]
    fn a_user_is_found_in_passwd() {
        let passwd =
            "root:x:0:0::/root:/bin/sh\npostgres:x:101:104:A,,,:/var/lib/postgresql:/bin/bash\n";
        assert_eq!(ids(passwd, "postgres"), Some((101, 104)));
        assert_eq!(ids(passwd, "post"), None);
    }
}
