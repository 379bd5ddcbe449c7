//! A line between a store and its server that can be cut at a chosen word.
//!
//! It listens on a socket of its own and passes on every byte, until the store says the word it is armed with: then it cuts that
//! connection, before or after the server heard the word, and is armed no more. The word must come in one packet, as PostgreSQL's
//! short statements do.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// Where to cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The server never hears the word.
    Before(&'static str),
    /// The server hears it, and has answered; the store never hears the answer.
    After(&'static str),
}

pub(crate) struct Proxy {
    dir: TempDir,
    armed: Arc<Mutex<Option<Cut>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub(crate) fn start(server: PathBuf) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join(server.file_name().unwrap());
        let listener = UnixListener::bind(socket).unwrap();
        let armed = Arc::new(Mutex::new(None));
        let arm = Arc::clone(&armed);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = UnixStream::connect(&server).await.unwrap();
                tokio::spawn(pass(client, server, Arc::clone(&arm)));
            }
        });
        Self { dir, armed, task }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn arm(&self, cut: Cut) {
        *self.armed.lock().unwrap() = Some(cut);
    }

    /// Whether it was cut since it was armed.
    pub(crate) fn was_cut(&self) -> bool {
        self.armed.lock().unwrap().is_none()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Takes the cut if `said` has its word.
fn taken(armed: &Mutex<Option<Cut>>, said: &[u8]) -> Option<Cut> {
    let mut armed = armed.lock().unwrap();
    let cut = (*armed)?;
    let (Cut::Before(word) | Cut::After(word)) = cut;
    let heard = said.windows(word.len()).any(|part| part == word.as_bytes());
    heard.then(|| armed.take()).flatten()
}

/// Until either side ends, or the line is cut.
async fn pass(mut client: UnixStream, mut server: UnixStream, armed: Arc<Mutex<Option<Cut>>>) {
    let (mut asked, mut answered) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(bytes @ 1..) = read else { return };
                let cut = taken(&armed, &asked[..bytes]);
                if matches!(cut, Some(Cut::Before(_))) {
                    return;
                }
                if server.write_all(&asked[..bytes]).await.is_err() {
                    return;
                }
                if cut.is_some() {
                    // The answer is waited for, so that it is known to be done, and dropped.
                    let _ = server.read(&mut answered).await;
                    return;
                }
            }
            read = server.read(&mut answered) => {
                let Ok(bytes @ 1..) = read else { return };
                if client.write_all(&answered[..bytes]).await.is_err() {
                    return;
                }
            }
        }
    }
}
